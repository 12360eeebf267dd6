"""Split the data into training and held-out examples."""

import json
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.data.conversations import Conversation
from lonas_edge.data.instructions import TEXT, Learned, read_data
from lonas_edge.data.templates import Example
from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import replace_text
from lonas_edge.pipeline.tasks import PipelineTask

if TYPE_CHECKING:
    from lonas_edge.data.sentences import Sentences

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
LEAST = 16  # held-out examples
_SHARE = 10  # one of this many examples is held out


def split(task: PipelineTask, data: Path, eval_data: Path | None, seed: int, folder: Path) -> dict[str, int]:
    """Write the training and the held-out examples as JSON Lines; return their numbers by part.

    Without held-out data, a tenth of the distinct examples is held out. Of held-out data, at most `PipelineTask.most` examples
    are drawn. None of them is trained on, nor another example with a text or pair of theirs where these alone are learned.

    Raises:
        LonasEdgeError: If too few examples are left for a part.
    """
    examples = task.examples(data)
    train = list(examples)
    if eval_data:
        others = task.examples(eval_data)
        held_out = list(others)
        held_out = random.Random(seed).sample(held_out, task.most) if len(held_out) > task.most else held_out
    else:
        others = examples
        count = min(task.most, max(LEAST, len(examples) // _SHARE))
        random.Random(seed).shuffle(train)
        train, held_out = train[count:], train[:count]
    known = frozenset().union(*(others[line] for line in held_out))
    train = [line for line in train if examples[line].isdisjoint(known)]
    _check(data, eval_data, len(examples), len(train), len(held_out))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in ((TRAIN, train), (HELD_OUT, held_out)):
        replace_text(folder / name, "".join(f"{line}\n" for line in part))
    return {"train": len(train), "held_out": len(held_out)}


def _check(data: Path, eval_data: Path | None, count: int, train: int, held_out: int) -> None:
    if eval_data and held_out < LEAST:
        raise LonasEdgeError(f"{eval_data}: {held_out} distinct examples; expected at least {LEAST}. Add examples.")
    if eval_data and not train:
        raise LonasEdgeError(f"{data}: all {count} examples are also in {eval_data}; none is left to train on. Pass others.")
    if not eval_data and train < LEAST:
        shared = count - train - held_out
        without = f" and {shared} share texts with these" if shared else ""
        raise LonasEdgeError(
            f"{data}: {count} distinct examples; expected at least {2 * LEAST}, of which {LEAST} are held out{without}. Add "
            "examples, or pass held-out ones with --eval-data."
        )


def learned_examples(data: Path) -> dict[str, frozenset[str]]:
    """Read examples of language models, see `PipelineTask.examples`."""
    lines = (json.dumps(_learned(example)) for example in read_data(data).examples)
    return {line: frozenset((line,)) for line in lines}


def _learned(example: Learned) -> dict[str, Any]:
    if isinstance(example, Example):
        return {"instruction": example.instruction, "input": example.input, "output": example.output}
    if isinstance(example, Conversation):
        return {"messages": [{"role": role, "content": content} for role, content in example.messages]}
    return {"text": example.text}


def sentence_examples(data: Path) -> dict[str, frozenset[str]]:
    """Read examples of embedding models, see `PipelineTask.examples`: texts are learned, in whatever records they are."""
    from lonas_edge.data.sentences import read_sentences

    read = read_sentences(data)
    return {line: frozenset(texts) for line, texts in zip(_lines(read, "score"), read.rows, strict=True)}


def pair_examples(data: Path, outputs: Sequence[str]) -> dict[str, frozenset[str]]:
    """Read examples of classifiers with these outputs, see `PipelineTask.examples`: single texts or pairs are learned."""
    from lonas_edge.data.sentences import read_sentences

    read = read_sentences(data, outputs)
    return {
        line: frozenset(json.dumps([first, second]) for second in others or [""])
        for line, (first, *others) in zip(_lines(read, "label"), read.rows, strict=True)
    }


def _lines(read: "Sentences", score: str) -> Iterator[str]:
    """Records as lines of JSON, with the name of the score."""
    from lonas_edge.data.sentences import PROMPT, SCORED

    names = ("sentence1", "sentence2") if read.kind == SCORED else ("query", "positive", "negative")
    for index, texts in enumerate(read.rows):
        record: dict[str, Any] = dict(zip(names, texts, strict=False)) if len(texts) > 1 else {TEXT: texts[0]}
        if read.scores:
            record[score] = read.scores[index]
        if read.prompts and read.prompts[index]:
            record[PROMPT] = read.prompts[index]
        yield json.dumps(record)


def typical(lines: Iterable[str], count: int) -> list[str]:
    """The lines of a JSON Lines file nearest to the median length, for timed training steps."""
    known = [line for line in lines if line.strip()]
    middle = statistics.median(map(len, known))
    return sorted(known, key=lambda line: abs(len(line) - middle))[:count]
