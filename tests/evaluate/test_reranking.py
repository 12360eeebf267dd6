"""Rerankers on candidate passages: targets of both kinds vs. the oracle and scikit-learn, ties, refusals."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import ndcg_score
from tiny_bert import CONTEXT, TinyBert, oracle_logits, tokenizer

from lonas_edge.evaluate import targets

WORDS = ("the", "good", "bad", "film", "not", "is", "same", "we", "a.")
MINIMAL, MAXIMAL = ([32] * 3 + [6] * 3 + [64] * 3, [64] * 3 + [8] * 3 + [128] * 3)


def write(folder: Path, queries: int = 7) -> list[dict[str, Any]]:
    """Made up candidates, more than ten for most queries, some beyond the context; a query without negatives is left out."""
    draw = random.Random(4)
    texts = [" ".join(draw.choices(WORDS, k=length)) for length in [*range(3, 40), 90, 91]]
    records = []
    for index in range(queries):
        drawn = draw.sample(texts, draw.randint(6, 16))
        records.append(
            {"query": f"{texts[index]} film", "positive": drawn[: 1 + index % 3], "negative": drawn[1 + index % 3 :]}
        )
    lines = [*records, {"query": "film", "positive": ["good"], "negative": []}]
    (folder / "mine").mkdir(parents=True)
    (folder / "mine/reranking.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return records


def expected(source: Any, widths: list[int], record: dict[str, Any]) -> tuple[float, float, list[str]]:
    """nDCG@10 by scikit-learn and MRR@10 by its definition, on the oracle's scores; the first texts."""
    texts = record["positive"] + record["negative"]
    options = {"truncation": "longest_first", "max_length": CONTEXT, "padding": True, "return_tensors": "pt"}
    inputs = tokenizer()([record["query"]] * len(texts), texts, return_token_type_ids=True, **options)
    scores = oracle_logits(source.base, source.adapter, source.space, widths, inputs)[:, 0].tolist()
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    relevant = [float(place < len(record["positive"])) for place in range(len(texts))]
    first = next((rank for rank, place in enumerate(order, 1) if relevant[place]), 99)
    return ndcg_score([relevant], [scores], k=10), 1 / first if first <= 10 else 0.0, [texts[place] for place in order[:10]]


def test_reranking(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    source, data = tiny_bert.source(1), tmp_path / "data"
    records = write(data)
    options = ("--subnet", "minimal", "--weight-format", "fp32", "--output", tmp_path / "ir")
    assert run_cli("export", *source.arguments(), *options).code == 0
    arguments = [tmp_path / "ir", source.adapter, *source.arguments()[1:], "--subnet", "maximal", "--datasets", data]
    exact = ("--property", "INFERENCE_PRECISION_HINT=f32", "--output", tmp_path / "out", "--card")
    ran = run_cli("eval", *arguments, *exact, "--json")
    assert ran.code == 0, ran.err
    report, gains = json.loads(ran.out), []
    assert report["protocol"] == "rerank" and len(report["targets"]) == 2
    for target, widths in zip(report["targets"], (MINIMAL, MAXIMAL), strict=True):
        gain, reciprocal, first = zip(*(expected(source, widths, record) for record in records), strict=True)
        (task,) = target["tasks"]
        assert (task["task"], task["metric"], task["questions"], task["skipped"]) == ("mine", "ndcg_at_10", len(records), [])
        assert task["accuracy"] == pytest.approx(100 * np.mean(gain)) and 10 < task["accuracy"] < 90
        assert task["accuracy_stderr"] == pytest.approx(100 * np.std(gain, ddof=1) / len(records) ** 0.5)
        assert task["metrics"]["mrr_at_10"]["value"] == pytest.approx(np.mean(reciprocal))
        log = tmp_path / "out/samples" / target["name"].replace(":", "_") / "samples_mine.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row["query"] for row in rows] == [record["query"] for record in records]
        assert [row["answer"] for row in rows] == list(first)
        gains.append(np.array(gain))
    (difference,) = (each for each in report["differences"] if each["scope"] == "mine")
    assert difference["points"] == pytest.approx(100 * (gains[1] - gains[0]).mean())
    assert "rerank: candidates in the order of their scores; mine: nDCG@10, MRR@10" in (tmp_path / "ir/README.md").read_text()


def test_equal_scores_are_no_order(
    tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that gives every passage the same score finds the relevant ones last."""
    (tmp_path / "mine").mkdir()
    record = {"query": "film", "positive": ["good"], "negative": ["bad", "not"]}
    (tmp_path / "mine/reranking.jsonl").write_text(json.dumps(record) + "\n")
    source = tiny_bert.source(1)
    monkeypatch.setattr(targets, "torch_encoder", lambda *_: lambda batch: np.zeros((len(batch["input_ids"]), 1)))
    ran = run_cli("eval", *source.arguments(), "--subnet", "minimal", "--datasets", tmp_path, "--json")
    assert ran.code == 0, ran.err
    metrics = json.loads(ran.out)["targets"][0]["tasks"][0]["metrics"]
    assert metrics["mrr_at_10"]["value"] == pytest.approx(1 / 3) and metrics["ndcg_at_10"]["value"] == pytest.approx(1 / 2)


def test_other_targets_are_refused(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE/dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tgood\tbad\tentailment\n")
    on, one, two = ("--datasets", tmp_path), tiny_bert.source(1).arguments(), tiny_bert.source(2).arguments()
    for arguments, message in (
        ((*two, *on, "--tasks", "mine"), "2 outputs; expected 1, a score of a query and a passage"),
        ((*one, *on, "--tasks", "mine,RTE"), "mine: no task of a sequence classifier"),
        ((*one, *on, "--tasks", "other"), "other: no task of a sequence classifier"),
    ):
        ran = run_cli("eval", *arguments)
        assert ran.code == 1 and message in " ".join(ran.err.split()), ran.err
    ran = run_cli("eval", *two, *on, "--json")  # a classifier has GLUE's tasks
    assert ran.code == 0 and json.loads(ran.out)["protocol"] == "classify", ran.err
