"""`compress` on a tiny reranker and a tiny classifier: steps, figures by transformers and SciPy, data, refusals."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from optimum.intel import OVModelForSequenceClassification
from pipeline_runs import make_quick
from scipy.stats import entropy, spearmanr
from test_compress_embedding import WORDS
from tiny_bert import TinyBert, reranker
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge.bench.statistics import Interval
from lonas_edge.cli.compress import compress
from lonas_edge.data.pairs import PairTask
from lonas_edge.exporting.exported import open_exported
from lonas_edge.families import CLASSIFICATION
from lonas_edge.pipeline import choice, measure
from lonas_edge.pipeline.record import CompressRecord, Trial
from lonas_edge.pipeline.report import write_report
from lonas_edge.progress import silent

QUICK: dict[str, Any] = {"recovery_steps": 2, "prompt_len": 8}
NAMES = ("low", "middle", "high")


def write(path: Path, outputs: int, count: int = 96) -> Path:
    """Pairs with a grade, or single texts with the name of a class; queries are repeated."""
    draw, rows = random.Random(0), []
    for index in range(count):
        text, grade = " ".join(draw.choices(WORDS, k=draw.randint(3, 12))) + f" {index}", draw.randrange(3)
        pair = {"query": f"film {index % 4}", "passage": text, "label": grade}
        rows.append(pair if outputs == 1 else {"text": text, "label": NAMES[grade]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module", params=[1, 3], ids=["reranker", "classifier"])
def made(
    request: pytest.FixtureRequest, tiny_bert: TinyBert, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, CompressRecord]:
    """The folder of a run with `base`, `data.jsonl` and `out`; the number of outputs; and the record. Not to be changed.

    Latency is measured for the reranker only.
    """
    folder = tmp_path_factory.mktemp("classifier")
    base = reranker(tiny_bert, folder / "base", request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch, whole=request.param == 1)
        record = compress(base, data=write(folder / "data.jsonl", request.param), output=folder / "out", **QUICK)
    write_report(record, folder)
    return folder, request.param, record


def test_the_output(made: tuple[Path, int, CompressRecord]) -> None:
    """One of three layers is removed without a fine-tuning, the result is INT8, and all of it is in the report."""
    folder, outputs, record = made
    assert [step.name for step in record.steps] == [
        "space",
        "search",
        "baselines",
        "recover macs<=0.84x",
        "export macs<=0.84x",
        "measure",
    ]
    exported, ours = open_exported(folder / "out/model"), record.networks[-1]
    assert exported.kind is CLASSIFICATION and exported.config["num_hidden_layers"] == 2
    assert (ours.weight_format, record.cost, record.samples) == ("int8_sym", "macs", ())
    assert set(ours.quality) == {"distance", "spearman" if outputs == 1 else "accuracy"} and set(ours.latency) == {"latency"}
    assert record.curves[0].held_out and not record.curves[0].distilled
    expected = (
        ("squared distance", "Spearman", "rank correlation with the labels")
        if outputs == 1
        else ("KL", "accuracy", "whose label is the most likely class")
    )
    for path in (folder / "report.html", folder / "report.md", folder / "out/model/README.md"):
        report = path.read_text()
        assert all(text in report for text in expected)
        assert not re.search("cosine|embedding|sample answers|TPOT|prompt tokens", report, re.IGNORECASE)
    report = (folder / "report.md").read_text()
    assert ("KL" if outputs == 1 else "Spearman") not in report
    assert "1 of 3 layers removed. For macs<=0.84x, the search predicted 0.67x the MACs" in report
    assert "--task text-classification" in report


def test_the_figures(made: tuple[Path, int, CompressRecord]) -> None:
    """By optimum-intel's logits of the exported model, one text at a time, and transformers' of the base."""
    folder, outputs, record = made
    rows = [json.loads(line) for line in (folder / "out/steps/data/held_out.jsonl").read_text().splitlines()]
    texts = [(row["text"],) if "text" in row else (row["sentence1"], row["sentence2"]) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    base, ours = (
        AutoModelForSequenceClassification.from_pretrained(folder / "base").eval(),
        OVModelForSequenceClassification.from_pretrained(folder / "out/model"),
    )
    with torch.inference_mode():
        first, second = (
            np.array([model(**tokenizer(*text, return_tensors="pt")).logits[0].tolist() for text in texts])
            for model in (base, ours)
        )
    found, labels = record.networks[-1].quality, [row["label"] for row in rows]
    assert len(rows) == record.examples["held_out"] == 16 and set(labels) <= {0, 1, 2}
    if outputs == 1:
        assert found["distance"].value == pytest.approx(np.square(first - second).mean(), rel=0.02)
        assert found["spearman"].value == pytest.approx(100 * spearmanr(second[:, 0], labels).statistic, abs=1)
    else:
        probabilities = (torch.tensor(each).softmax(-1).numpy() for each in (first, second))
        assert found["distance"].value == pytest.approx(entropy(*probabilities, axis=-1).mean(), rel=0.02)
        assert found["accuracy"].value == pytest.approx(
            100 * np.mean(second.argmax(-1) == labels), abs=100 / 16
        )  # a tie in bf16
    stock = record.networks[0].quality["distance"].value
    assert stock < 0.1 * found["distance"].value
    assert found["distance"].difference.value == pytest.approx(found["distance"].value - stock)


def test_a_target_in_a_metric(made: tuple[Path, int, CompressRecord], quick: None, tmp_path: Path) -> None:
    """The most pruned network that meets the bound; its quality by optimum-intel."""
    folder, outputs, _ = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    name = "spearman" if outputs == 1 else "accuracy"
    record = compress(tmp_path / "base", data=tmp_path / "data.jsonl", output=tmp_path / "out", target=f"{name}=-100", **QUICK)
    target = f"{name}>=-100"
    [chosen] = [each for each in record.networks if each.target == target]
    trials = record.trials[target]
    assert trials and [trial.difference.value >= -100 for trial in trials] == [True] * len(trials)
    exported = open_exported(tmp_path / "out" / str(chosen.folder))
    assert exported.config["num_hidden_layers"] == 2  # the first and the last layer stay
    rows = [json.loads(line) for line in (tmp_path / "out/steps/data/held_out.jsonl").read_text().splitlines()]
    tokenizer, labels = AutoTokenizer.from_pretrained(tmp_path / "base"), [row["label"] for row in rows]
    texts = [(row["text"],) if "text" in row else (row["sentence1"], row["sentence2"]) for row in rows]
    model: Any = OVModelForSequenceClassification.from_pretrained(exported.folder)
    logits = np.array([model(**tokenizer(*text, return_tensors="pt")).logits[0].tolist() for text in texts])
    figure = spearmanr(logits[:, 0], labels).statistic if outputs == 1 else np.mean(logits.argmax(-1) == labels)
    difference = 100 * figure - record.networks[0].quality[name].value
    assert trials[-1].difference.value == pytest.approx(difference, abs=100 / 16 if outputs == 3 else 1)
    assert chosen.quality[name].difference == trials[-1].difference


def test_a_missed_bound(
    made: tuple[Path, int, CompressRecord], quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two lost answers of 16 are too many: the result is the unpruned model in INT8, and the report says so."""
    folder, outputs, _ = made
    name = "spearman" if outputs == 1 else "accuracy"
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    lost = Interval(-15, -16, -14)
    monkeypatch.setattr(choice, "_try", lambda _plan, _bound, pick, *_: Trial(pick.expression, "tried", lost))
    record = compress(tmp_path / "base", data=tmp_path / "data.jsonl", output=tmp_path / "out", target=f"{name}=-1", **QUICK)
    [chosen] = [each for each in record.networks if each.target == f"{name}>=-1"]
    exported = open_exported(tmp_path / "out" / str(chosen.folder))
    assert (exported.config["num_hidden_layers"], chosen.weight_format) == (3, "int8")
    assert any(f"No candidate met {name}>=-1: the result is the unpruned model in INT8" in each for each in record.warnings)
    assert any("16 held-out examples say little about accuracy" in each for each in record.warnings)


def test_equal_classes_leave_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 3 of n differ with 95 % confidence: 15 points of 20 examples."""
    outputs = np.random.default_rng(0).normal(size=(20, 1, 2))
    data: Any = SimpleNamespace(examples=[SimpleNamespace(label=index % 2) for index in range(20)], pooling=None)
    monkeypatch.setattr(measure, "ir_outputs", lambda *_: outputs)
    found = measure.distances({"first": Path("first"), "second": Path("second")}, data, None, silent)["accuracy"]
    assert found["second"].difference == Interval(0, -15, 15)
    assert found["first"].value == pytest.approx(100 * np.mean(outputs[:, 0].argmax(-1) == np.arange(20) % 2))


def test_distances() -> None:
    """KL of (1/2, 1/2) and (1/4, 3/4); squared distances, of which a record's are averaged."""
    halves, quarters = (np.log([[[*each]]]) for each in ((0.5, 0.5), (0.25, 0.75)))
    assert PairTask(outputs=("no", "yes")).distances(halves + 3, quarters) == pytest.approx([0.5 * np.log(4 / 3)])
    assert PairTask(outputs=("score",)).distances(np.array([[[1.0], [2.0]]]), np.array([[[4.0], [1.0]]])).tolist() == [5]


def test_refused(refused: Callable[..., str], tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Before any step: a missing head, classes that do not exclude each other, labels of other models, options of others."""
    headless, base, data = tmp_path / "headless", reranker(tiny_bert, tmp_path / "base", 3), write(tmp_path / "data.jsonl", 3)
    shutil.copytree(tiny_bert.base(headless=True), headless)
    config = json.loads((headless / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (headless / "config.json").write_text(json.dumps(config))
    message = refused(headless, data=data)
    assert f"{headless}: has no classification head; fine-tune it first: lonas-edge train --model {headless}" in message
    rows = data.read_text()
    data.write_text(rows + json.dumps({"text": "a", "label": "medium"}) + "\n")
    assert "line 97: label medium: expected a class: low, middle, high, or 0 to 2" in refused(base, data=data)
    data.write_text(rows)
    assert "--max-length 9: a sequence classifier generates no text; omit it" in refused(base, data=data, max_length=9)
    assert "--template alpaca: a reranker generates no text; omit it" in refused(
        reranker(tiny_bert, tmp_path / "one", 1), data=data, template="alpaca"
    )
    assert "tpot is not measured here; expected one of kl, latency, macs" in refused(base, data=data, target="tpot<=0.7x")
    data.write_text("".join(json.dumps({"text": f"film {index}"}) + "\n" for index in range(96)))
    assert "accuracy>=-1: " in (message := refused(base, data=data, target="accuracy=-1"))
    assert "the held-out examples have no labels, or all have the same one. Pass labelled examples" in message
    config = json.loads((base / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (base / "config.json").write_text(json.dumps(config))
    assert "'multi_label_classification' is not supported" in refused(base, data=data)


@pytest.mark.slow
def test_an_adapter_on_a_base_without_a_head(tiny_bert: TinyBert, tmp_path: Path, quick: None) -> None:
    data, adapter, headless = write(tmp_path / "data.jsonl", 1), tiny_bert.adapter(1), tiny_bert.base(headless=True)
    record = compress(adapter, model=headless, data=data, output=tmp_path / "out", **QUICK)
    first, *_, ours = record.networks
    assert first.quality["distance"].value < 0.1 * ours.quality["distance"].value
    assert record.task == "reranker" and open_exported(tmp_path / "out/model").config["num_hidden_layers"] == 2
