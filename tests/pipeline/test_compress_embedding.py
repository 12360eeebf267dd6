"""`compress` on a tiny embedding model: its steps, figures by an oracle, and what differs from a language model's."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_runs import make_quick, plan_steps
from tiny_bert import TinyBert

from lonas_edge.cli.compress import compress
from lonas_edge.data.sentences import SentenceTask
from lonas_edge.exporting.exported import open_exported
from lonas_edge.families import EMBEDDING
from lonas_edge.network.source import open_source
from lonas_edge.pipeline.plan import source_hashes
from lonas_edge.pipeline.record import CompressRecord

QUICK: dict[str, Any] = {"target": "weights<=0.8x", "recovery_steps": 2, "prompt_len": 8}
WORDS = ("the", "good", "bad", "film", "not", "is", "same", "a", "b", "c", "d", "e", "f")


def write_pairs(path: Path, count: int = 96) -> Path:
    """Scored pairs of random words, of several lengths; no text is repeated."""
    draw = random.Random(0)
    rows = [
        {
            "sentence1": " ".join(draw.choices(WORDS, k=draw.randint(3, 12))) + f" {index}",
            "sentence2": " ".join(draw.choices(WORDS, k=4)) + f" {index} b",
            "score": draw.random(),
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tiny_bert: TinyBert, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompressRecord]:
    """The output of a run on scored pairs, and its record. Not to be changed."""
    folder = tmp_path_factory.mktemp("embedding")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch, whole=True)
        record = compress(tiny_bert.body(), data=write_pairs(folder / "data.jsonl"), output=folder / "out", **QUICK)
    return folder / "out", record


def test_the_output(made: tuple[Path, CompressRecord]) -> None:
    """A layer is removed without a fine-tuning, the result is INT8, and all of it is in the report."""
    out, record = made
    names = ["space", "search", "baselines", "recover weights<=0.8x", "export weights<=0.8x", "measure"]
    assert [step.name for step in record.steps] == names
    first, _, ours = record.networks
    exported = open_exported(out / "model")
    assert exported.kind is EMBEDDING and exported.pooling and exported.pooling.mode == "mean"
    assert (exported.config["num_hidden_layers"], ours.weight_format) == (2, "int8_sym")
    assert [all(part.kept == 0 for part in layer) for layer in ours.removed] == [False, True, False]
    assert first.quality["distance"].value < 0.01 < ours.quality["distance"].value
    assert set(ours.quality) == {"distance", "spearman"} and set(ours.latency) == {"latency"}
    assert record.samples == () and record.curves[0].held_out and not record.curves[0].distilled
    trained = json.loads((out / "steps/recovered/weights-0.8x/training.json").read_text())
    assert trained["teacher"] and trained["options"]["batch_size"] == 32
    options = record.options
    assert (options["weight_format"], options["prompt_len"], options["new_tokens"]) == ("int8_sym", 8, None)
    report = (out / "report.html").read_text()
    assert "cosine distance" in report and "Sample answers" not in report and "KL" not in report
    assert "1 of 3 layers removed" in (out / "report.md").read_text()


def test_another_pooling_is_another_source(tiny_bert: TinyBert) -> None:
    mean, cls = (source_hashes(open_source(str(tiny_bert.body(mode)))) for mode in ("mean", "cls"))
    assert mean["base"] == cls["base"] and mean["pooling"] != cls["pooling"]


def test_distances() -> None:
    """1 and 0, averaged."""
    turned = np.array([[[1.0, 0], [0.6, 0.8]]]), np.array([[[0.0, 1], [0.6, 0.8]]])
    assert SentenceTask().distances(*turned).tolist() == [0.5]


@pytest.fixture
def embedding_refused(refused: Callable[..., str], tiny_bert: TinyBert, tmp_path: Path) -> Callable[..., str]:
    data, base = write_pairs(tmp_path / "pairs.jsonl"), tiny_bert.body()
    return lambda **options: refused(base, data=data, **options)


def test_options_of_language_models_are_refused(embedding_refused: Callable[..., str]) -> None:
    message, no_text = (
        embedding_refused(template="alpaca", max_length=9, prompt_len=65, epochs=2),
        "a sentence embedding model generates no text",
    )
    assert f"--template alpaca: {no_text}" in message and f"--max-length 9: {no_text}" in message
    assert "--epochs 2: a sentence embedding model is compressed without fine-tuning; omit it" in message
    assert "--prompt-len 65: 65 tokens are beyond the model's context of 64" in message
    message = embedding_refused(target="tpot<=0.7x")
    assert "tpot is not measured here; expected one of kl, latency, macs, weights, bytes" in message
    assert "the smallest network has weights 0.667x" in embedding_refused(target="weights<=0.1x")


def test_an_adapter_of_another_task_than_its_base(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The base is a masked language model. Steps are timed with the adapter; the command of the space is what it does."""
    source, base = tiny_bert.embedder(), tmp_path / "base"
    shutil.copytree(tiny_bert.base(headless=True), base)
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (base / "config.json").write_text(json.dumps(config))
    steps = plan_steps(source.adapter, tmp_path, write_pairs(tmp_path / "data.jsonl"), model=base)
    assert steps["baselines"].folder == "baselines"  # the merged model is not kept
    assert f"--adapter {source.adapter} --depth layer --ratios 1" in steps["space"].command


@pytest.mark.slow
def test_an_adapter_in_int4_with_fewer_tokens(tiny_bert: TinyBert, tmp_path: Path, quick: None) -> None:
    """An adapter is compressed as it is: PEFT's, on queries and values."""
    source = tiny_bert.embedder()
    options = {**QUICK, "weight_format": "int4_sym", "vocabulary": 142}
    data = write_pairs(tmp_path / "data.jsonl")
    record = compress(source.adapter, model=source.base, data=data, output=tmp_path / "out", **options)
    assert [step.name.split()[0] for step in record.steps] == [
        "trim", "space", "search", "baselines", "recover", "export", "measure",
    ]  # fmt: skip
    assert record.networks[-1].weight_format == "int4_sym" and record.networks[-1].name == "compressed INT4"
    assert json.loads((tmp_path / "out/model/config.json").read_text())["vocab_size"] == 142
