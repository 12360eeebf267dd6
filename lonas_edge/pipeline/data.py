"""Split the data into training and held-out examples."""

import json
import random
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lonas_edge.data.conversations import Conversation
from lonas_edge.data.instructions import Learned, read_data
from lonas_edge.data.templates import Example
from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import replace_text

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
LEAST, MOST = 16, 400  # held-out examples
_SHARE = 10  # one of this many examples is held out


def split(data: Path, eval_data: Path | None, seed: int, folder: Path) -> dict[str, int]:
    """Write the training and the held-out examples as JSON Lines; return their numbers by part.

    Without held-out data, a tenth of the distinct examples is held out. Of held-out data, at most `MOST` examples are drawn.
    None of them is trained on.

    Raises:
        LonasEdgeError: If too few examples are left for a part.
    """
    examples = list(dict.fromkeys(read_data(data).examples))
    if eval_data:
        held_out = list(dict.fromkeys(read_data(eval_data).examples))
        held_out = random.Random(seed).sample(held_out, MOST) if len(held_out) > MOST else held_out
        known = set(held_out)
        train = [example for example in examples if example not in known]
    else:
        count = min(MOST, max(LEAST, len(examples) // _SHARE))
        random.Random(seed).shuffle(examples)
        train, held_out = examples[count:], examples[:count]
    _check(data, eval_data, len(examples), train, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in ((TRAIN, train), (HELD_OUT, held_out)):
        replace_text(folder / name, "".join(f"{json.dumps(_record(example))}\n" for example in part))
    return {"train": len(train), "held_out": len(held_out)}


def _check(data: Path, eval_data: Path | None, count: int, train: Sequence[Learned], held_out: Sequence[Learned]) -> None:
    if eval_data and len(held_out) < LEAST:
        raise LonasEdgeError(f"{eval_data}: {len(held_out)} distinct examples; expected at least {LEAST}. Add examples.")
    if eval_data and not train:
        raise LonasEdgeError(f"{data}: all {count} examples are also in {eval_data}; none is left to train on. Pass others.")
    if not eval_data and len(train) < LEAST:
        raise LonasEdgeError(
            f"{data}: {count} distinct examples; expected at least {2 * LEAST}, of which {LEAST} are held out. Add examples, "
            "or pass held-out ones with --eval-data."
        )


def _record(example: Learned) -> dict[str, Any]:
    if isinstance(example, Example):
        return {"instruction": example.instruction, "input": example.input, "output": example.output}
    if isinstance(example, Conversation):
        return {"messages": [{"role": role, "content": content} for role, content in example.messages]}
    return {"text": example.text}


def typical(lines: Iterable[str], count: int) -> list[str]:
    """The lines of a JSON Lines file nearest to the median length, for timed training steps."""
    known = [line for line in lines if line.strip()]
    middle = statistics.median(map(len, known))
    return sorted(known, key=lambda line: abs(len(line) - middle))[:count]
