"""The split of the data into training and held-out examples."""

import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.data.language import LanguageTask
from lonas_edge.data.pairs import PairTask
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import SentenceTask
from lonas_edge.data.task import DataOptions, Task
from lonas_edge.errors import LonasEdgeError

SENTENCES = SentenceTask(pooling=Pooling(prompts={"query": "q: "}))
PAIRS = PairTask(options=DataOptions(labels=True), outputs=("score",))


def opened(folder: Path, rows: list[dict[str, Any]], task: Task | None = None, name: str = "data.jsonl") -> Task:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (task or LanguageTask()).read([(folder / name, 1.0)])


def instructions(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "output": str(number)} for number in range(start, start + count)]


def outputs(task: Task) -> list[int]:
    return [int(example.output) for example in task.examples]


@pytest.mark.parametrize(("count", "held_out"), [(32, 16), (200, 20), (5000, 400)])
def test_a_tenth_is_held_out(tmp_path: Path, count: int, held_out: int) -> None:
    """At least 16, at most 400; by the seed."""
    data = opened(tmp_path, instructions(count))
    train, chosen = data.split(400, 1)
    assert (len(train.examples), len(chosen.examples)) == (count - held_out, held_out)
    assert sorted(outputs(train) + outputs(chosen)) == list(range(count))
    assert outputs(data.split(400, 1)[1]) == outputs(chosen) != outputs(data.split(400, 2)[1])


def test_repeated_examples_are_not_on_both_sides(tmp_path: Path) -> None:
    train, held_out = opened(tmp_path, instructions(100) * 3).split(400, 0)
    assert (len(train.examples), len(held_out.examples)) == (84, 16)
    assert not set(outputs(train)) & set(outputs(held_out))


def test_own_held_out_data(tmp_path: Path) -> None:
    """400 of all, not the first ones, by the seed; none of them is trained on."""
    data = opened(tmp_path, instructions(40))
    few, many = (opened(tmp_path, instructions(count, start=30), name="held.jsonl") for count in (20, 1000))
    train, held_out = data.split(400, 0, few)
    assert (len(train.examples), len(held_out.examples)) == (30, 20)
    kept = [outputs(data.split(400, seed, many)[1]) for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    assert len(kept[0]) == 400 and max(kept[0]) > 900


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (LanguageTask(), {"instruction": "Ä {}? a\u2028b\u0085", "input": "more", "output": "ü\n"}),
        (LanguageTask(), {"messages": [{"role": "user", "content": "Hi {}"}, {"role": "assistant", "content": "Hello 😀"}]}),
        (LanguageTask(), {"text": "a\tb {}"}),
        (SENTENCES, {"text": "a {}", "prompt": "query"}),
        (SENTENCES, {"anchor": "a {}", "positive": "b {}", "negative": "c {}"}),
        (SENTENCES, {"sentence1": "a {}", "sentence2": "b {}", "score": 0.25}),
        (PAIRS, {"query": "a", "passage": "b {}", "label": 2}),
    ],
)
def test_examples_are_unchanged_in_files(task: Task, row: dict[str, Any], tmp_path: Path) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(number))) for number in range(60)]
    data = opened(tmp_path, rows, task)
    parts = []
    for name, part in zip(("train.jsonl", "held_out.jsonl"), data.split(400, 0), strict=True):
        part.write(tmp_path / name)
        parts.append(task.read([(tmp_path / name, 1.0)]))
    assert parts[0].kinds == parts[1].kinds == data.kinds
    assert {*parts[0].examples, *parts[1].examples} == {*data.examples}
    assert len(parts[0].examples) == 44


def test_no_text_of_an_embedding_model_is_on_both_sides(tmp_path: Path) -> None:
    """Also in other records."""
    data = opened(tmp_path, [{"query": f"q {number // 2}", "passage": f"p {number}"} for number in range(200)], SENTENCES)
    train, held_out = data.split(1500, 0)
    assert len(held_out.examples) == 20 and len(train.examples) < 180
    assert not {text for each in train.examples for text in each.texts} & {
        text for each in held_out.examples for text in each.texts
    }
    texts = opened(tmp_path, [{"text": f"p {number}"} for number in range(300)], SENTENCES, "texts.jsonl")
    assert len(texts.split(1500, 0, data)[0].examples) == 100


def test_no_pair_of_a_reranker_is_on_both_sides(tmp_path: Path) -> None:
    """Its query may occur in other pairs; a pair does not, also not in a triplet."""
    rows = [{"query": f"q {number % 4}", "passage": f"p {number}", "label": 1} for number in range(96)]
    data = opened(tmp_path, rows, PAIRS)
    train, held_out = data.split(1500, 0)
    assert (len(train.examples), len(held_out.examples)) == (80, 16)
    assert {each.texts[0] for each in train.examples} == {each.texts[0] for each in held_out.examples}
    triplets = [{"query": row["query"], "positive": "other", "negative": row["passage"]} for row in rows]
    mixed = opened(tmp_path, [*triplets, {"query": "a", "positive": "b", "negative": "c"}], PAIRS, "triplets.jsonl")
    assert [each.texts for each in mixed.split(1500, 0, data)[0].examples] == [("a", "b", "c")]


def test_too_few_examples(tmp_path: Path) -> None:
    for count in (1, 31):
        with pytest.raises(LonasEdgeError, match=f"of {count} distinct examples .*.*--eval-data"):
            opened(tmp_path, instructions(count)).split(400, 0)
    data = opened(tmp_path, instructions(20))
    with pytest.raises(LonasEdgeError, match="of 20 distinct examples 0 are left to train on and 20"):
        data.split(400, 0, data)
    few = opened(tmp_path, instructions(3), name="few.jsonl")
    with pytest.raises(LonasEdgeError, match="17 are left to train on and 3"):
        data.split(400, 0, few)
