"""Data of embedding models: the kinds of records, their batches, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bert import tokenizer

from lonas_edge.data.glue import TASKS
from lonas_edge.data.pairs import PairTask
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import SentenceTask
from lonas_edge.data.task import DataOptions
from lonas_edge.errors import LonasEdgeError


def write(folder: Path, *records: Any) -> Path:
    (folder / "data.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return folder / "data.jsonl"


def read(path: Path, pooling: Pooling | None = None) -> SentenceTask:
    return SentenceTask(pooling=pooling or Pooling()).read([(path, 1.0)])


def labelled(path: Path, outputs: tuple[str, ...], glue: str | None = None) -> PairTask:
    """Of a classifier with these outputs; without outputs labels are not read."""
    options = DataOptions(TASKS[glue] if glue else None, labels=bool(outputs))
    return PairTask(options=options, outputs=outputs).read([(path, 1.0)])


def labels_of(task: SentenceTask | PairTask) -> list[float]:
    return [example.label for example in task.examples if example.label is not None]


def texts_of(task: SentenceTask | PairTask) -> list[tuple[str, ...]]:
    return [example.texts for example in task.examples]


@pytest.mark.parametrize(
    ("record", "kind", "texts"),
    [
        ({"text": "the film", "source": "a web page", "label": 2}, "text", ("the film",)),
        ({"anchor": "good", "positive": "is good"}, "pair", ("good", "is good")),
        ({"negative": "bad", "id": "7", "query": "good", "positive": "is good"}, "triplet", ("good", "is good", "bad")),
        ({"sentence1": "good", "sentence2": "bad", "score": 0.25}, "scored pair", ("good", "bad")),
        ({"sentence1": "good", "sentence2": "bad", "label": 1}, "scored pair", ("good", "bad")),
    ],
)
def test_kinds(record: dict, kind: str, texts: tuple[str, ...], tmp_path: Path) -> None:
    task = read(write(tmp_path, record, record))
    assert (task.kinds, texts_of(task)) == ([kind], [texts, texts])
    assert labels_of(task) == ([float(record.get("score", 1))] * 2 if kind == "scored pair" else [])


def test_glue_files(tmp_path: Path) -> None:
    """STS-B's scores from 0 to 5 become cosines; classes of other tasks are not read."""
    for task, column, labels in (("STS-B", "score", ("5", "0.5")), ("RTE", "label", ("entailment", "not_entailment"))):
        (tmp_path / task).mkdir()
        rows = [f"0\tgood\tbad\t{labels[0]}", f"1\tthe film\tsame\t{labels[1]}"]
        (tmp_path / task / "dev.tsv").write_text("\n".join([f"index\tsentence1\tsentence2\t{column}", *rows]) + "\n")
    scored, texts = (read(tmp_path / task / "dev.tsv") for task in ("STS-B", "RTE"))
    assert (scored.kinds, labels_of(scored)) == (["scored pair"], [1.0, 0.1]) and texts_of(scored)[1] == ("the film", "same")
    assert (texts.kinds, texts_of(texts)) == (["text"], [("good",), ("bad",), ("the film",), ("same",)])


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([{"anchor": "good", "positive": "bad"}, {"anchor": "good"}], "line 2: expected the fields anchor, positive, as in"),
        ([{"anchor": "good", "positive": " "}], "line 1: no text in 'positive'"),
        ([{"sentence1": "a", "sentence2": "b", "score": 4.5}], "line 1: score 4.5: expected a cosine from -1 to 1"),
        ([{"sentence1": "a", "sentence2": "b", "score": float("nan")}], "line 1: score nan: expected a cosine"),
        ([{"instruction": "1", "input": "", "output": "3"}], "line 1: found the fields instruction, input, output"),
        ([{"query": "a", "pos": ["b"], "neg": ["c"]}], "line 1: found the fields query, pos, neg"),
        ([{"query": "a", "positive": ["b"]}], "line 1: no text in 'positive'"),
        (
            [{"anchor": "a", "positive": "b"}, {"anchor": "a", "positive": "b", "negative": "c"}],
            "line 2: expected the fields anchor, positive, as in the first record; found the fields anchor, positive, negative",
        ),
        ([{"text": "a", "prompt": 1}], "line 1: 'prompt' is no name"),
    ],
)
def test_refused(records: list[Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="not sentences") as caught:
        read(write(tmp_path, *records))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "labels", "expected"),
    [
        (("no", "Yes"), ("yes", 0, 1.0), [1, 0, 1]),
        (("1 star", "2 stars", "3 stars"), (2, "1 star", 0), [2, 0, 0]),
        (("score",), (7, -2.5, 0.0), [7, -2.5, 0]),
        ((), ("any", None, 4), []),
    ],
)
def test_labels_of_a_classifier(outputs: tuple[str, ...], labels: tuple, expected: list | None, tmp_path: Path) -> None:
    """Of texts and pairs, by name or number; of one output a score of any size; ignored without outputs."""
    for names, texts in ((("text",), ("good",)), (("query", "passage"), ("good", "film"))):
        records = [dict(zip(names, texts, strict=True)) | {"label": label} for label in labels]
        task = labelled(write(tmp_path, *records), outputs)
        assert (texts_of(task), labels_of(task)) == ([texts] * 3, expected)
        assert task.files[0].kind == ("text" if len(texts) == 1 else "scored pair" if outputs else "pair")


def test_labels_with_probabilities(tmp_path: Path) -> None:
    """As a classifier writes them: "label" is the class. Of one output, "score" comes first."""
    path = write(tmp_path, {"text": "a", "label": "no", "score": 1.0}, {"text": "b", "label": "yes", "score": 0.98})
    assert labels_of(labelled(path, ("no", "yes"))) == [0, 1]
    assert labels_of(labelled(path, ("score",))) == [1.0, 0.98]


@pytest.mark.parametrize(
    ("outputs", "label", "fault"),
    [
        (("no", "yes"), "maybe", "label maybe: expected a class: no, yes, or 0 to 1"),
        (("no", "yes"), 2, "label 2: expected a class"),
        (("no", "yes"), 0.5, "label 0.5: expected a class"),
        (("no", "yes"), None, "label None: expected a class"),
        (("score",), "score", "label score: expected a finite number"),
        (("score",), float("inf"), "label inf: expected a finite number"),
    ],
)
def test_labels_that_are_refused(outputs: tuple[str, ...], label: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError) as caught:
        labelled(write(tmp_path, {"text": "good", "label": label}), outputs)
    assert f"line 1: {fault}" in str(caught.value)


def test_a_batch(tmp_path: Path) -> None:
    """The texts of a record stay together, each with its special tokens; long ones are cut."""
    path = write(
        tmp_path,
        {"sentence1": "good", "sentence2": "not bad", "label": 0.5},
        {"sentence1": "the film is good", "sentence2": "bad", "label": -1},
    )
    task, tokens = read(path, Pooling(prompts={"query": "is "}, default_prompt="query")), tokenizer()
    [rows] = task.encode(tokens, 5)
    batch = task.collator(tokens)(rows)
    texts = ["[CLS] is good [SEP]", "[CLS] is not bad [SEP]", "[CLS] is the film [SEP]", "[CLS] is bad [SEP]"]
    assert [tokens.decode(ids[ids > 0]) for ids in batch["input_ids"]] == texts
    assert batch["attention_mask"].sum(1).tolist() == [4, 5, 5, 4] and not batch["token_type_ids"].any()
    assert batch["labels"].tolist() == [0.5, 0.5, -1, -1]


def encoded_texts(path: Path, pooling: Pooling) -> list[list[str]]:
    """The texts of each record, as tokens say them."""
    texts = []
    for row in read(path, pooling).encode(tokenizer(), 9)[0]:
        ids = list(row["input_ids"])
        texts.append([])
        for length in row["lengths"]:
            texts[-1].append(tokenizer().decode(ids[:length][1:-1]))
            ids = ids[length:]
    return texts


def test_prompts(tmp_path: Path) -> None:
    """Of single texts by name; pairs and triplets have those of queries and passages, as `eval` gives them."""
    pooling = Pooling(prompts={"query": "is ", "passage": "the "})
    records = [{"text": "good", "prompt": "query"}, {"text": "film", "prompt": "passage"}, {"text": "same"}]
    assert encoded_texts(write(tmp_path, *records), pooling) == [["is good"], ["the film"], ["same"]]
    with pytest.raises(LonasEdgeError, match=r"no such prompts:\n  - prompt 'document'\nIt has passage, query"):
        read(write(tmp_path, {"text": "a", "prompt": "document"}), pooling)
    for record, texts in (
        ({"query": "good", "positive": "film"}, ["is good", "the film"]),
        ({"query": "good", "positive": "film", "negative": "bad"}, ["is good", "the film", "the bad"]),
        ({"sentence1": "good", "sentence2": "film", "score": 1}, ["good", "film"]),
    ):
        assert encoded_texts(write(tmp_path, record), pooling) == [texts]
