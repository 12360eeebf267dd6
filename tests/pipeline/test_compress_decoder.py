"""`compress` on tiny decoders: a classifier, and an embedding model of the last token."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum.intel import OVModelForFeatureExtraction, OVModelForSequenceClassification
from pipeline_runs import make_quick
from tiny_models import TinyModels
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge.bench.runners import ClassifierRunner
from lonas_edge.bench.variants import Variant
from lonas_edge.cli.compress import compress
from lonas_edge.commands import Command
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.optimum import optimum_options, run_optimum
from lonas_edge.families import CLASSIFICATION, EMBEDDING
from lonas_edge.ir.core import open_model
from lonas_edge.network.source import open_source
from lonas_edge.pipeline.measure import EXACT
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.tasks import LANGUAGE_MODEL, profile_of

WORDS, NAMES = ("good", "bad", "film", "not", "the"), ("low", "middle", "high")


def write_base(models: TinyModels, folder: Path, classifies: bool) -> Path:
    """A decoder with a head of its own, or one whose embeddings are those of the last token, at length 1."""
    torch.manual_seed(6)
    names = dict(enumerate(NAMES))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}, "num_labels": len(names)}
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    auto.from_pretrained(models.base("llama"), dtype=torch.float32, **(labels if classifies else {})).save_pretrained(folder)
    AutoTokenizer.from_pretrained(models.base("llama")).save_pretrained(folder)
    if not classifies:
        kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "lasttoken"}')
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["classifier", "embedding"])
def made(
    request: pytest.FixtureRequest, tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool, CompressRecord]:
    """The folder of a run with `base` and `out`, whether it classifies, and the record. Not to be changed."""
    folder, draw = tmp_path_factory.mktemp("decoder"), random.Random(0)
    base = write_base(tiny_models, folder / "base", request.param)
    rows = []
    for index in range(96):
        text = " ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + f" {index}"
        rows.append({"text": text, **({"label": draw.choice(NAMES)} if request.param else {})})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch, whole=False)
        quick: dict[str, Any] = {"recovery_steps": 2, "prompt_len": 8, "target": "macs<=0.8x"}
        record = compress(base, data=folder / "data.jsonl", output=folder / "out", **quick)
    source = open_source(str(base))
    profile = profile_of(source)
    assert profile.micro_tokens == LANGUAGE_MODEL.micro_tokens  # not that of encoders
    assert profile.target == ("macs<=0.67x" if request.param else "kl<=0.2")
    return folder, request.param, record


def test_the_output(made: tuple[Path, bool, CompressRecord]) -> None:
    """The classifier loses its last layer, the embedding model attention and MLP blocks. The result is INT8."""
    folder, classifies, record = made
    exported, ours = open_exported(folder / "out/model"), record.networks[-1]
    assert exported.kind is (CLASSIFICATION if classifies else EMBEDDING)
    assert ours.weight_format == "int8_sym" and record.samples == () and set(ours.latency) == {"latency"}
    subnetwork = json.loads((folder / "out/model/subnetwork.json").read_text())["widths"]
    removed = [name for name, width in subnetwork.items() if width == 0]
    if classifies:
        layers = json.loads((folder / "base/config.json").read_text())["num_hidden_layers"]
        assert removed == [f"layers.{layers - 1}.self_attn+layers.{layers - 1}.mlp"]
        assert json.loads((folder / "out/model/config.json").read_text())["num_hidden_layers"] == layers - 1
    else:
        assert removed and {name.rpartition(".")[2] for name in removed} <= {"self_attn", "mlp"}
    assert "tpot" not in (folder / "out/model/README.md").read_text().casefold()


@pytest.mark.parametrize("made", [True], indirect=True, ids=["classifier"])
def test_a_target_in_accuracy(made: tuple[Path, bool, CompressRecord], quick: None, tmp_path: Path) -> None:
    """The most pruned candidate that meets the bound: all layers but the first. Layers are counted as such."""
    folder, _, _ = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    options: dict[str, Any] = {"recovery_steps": 2, "prompt_len": 8, "target": "accuracy=-100"}
    record = compress(tmp_path / "base", data=tmp_path / "data.jsonl", output=tmp_path / "out", **options)
    [(target, trials)] = record.trials.items()
    [chosen] = [each for each in record.networks if each.target == target]
    kept = open_exported(tmp_path / "out" / str(chosen.folder)).config["num_hidden_layers"]
    assert kept == 1 and trials[-1].network.startswith("2 layers removed, ")


def test_labels_are_not_learned_by_a_language_model(
    refused: Callable[..., str], tiny_models: TinyModels, tmp_path: Path
) -> None:
    """They would be ignored, and the texts learned."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good film", "label": "praise"}\n' * 40)
    message = refused(tiny_models.base("llama"), data=data)
    assert f"{data}: texts with labels" in message and "lonas-edge train --no-elastic --model" in message


def test_the_distance(made: tuple[Path, bool, CompressRecord]) -> None:
    """By optimum-intel's outputs of the exported model, one text at a time, and transformers' of the base."""
    folder, classifies, record = made
    rows = [json.loads(line) for line in (folder / "out/steps/data/held_out.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    if classifies:
        base: Any = AutoModelForSequenceClassification.from_pretrained(folder / "base")
        ours: Any = OVModelForSequenceClassification.from_pretrained(folder / "out/model")
    else:
        base, ours = (
            AutoModel.from_pretrained(folder / "base"),
            OVModelForFeatureExtraction.from_pretrained(folder / "out/model"),
        )

    def outputs(model: Any, text: str) -> np.ndarray:
        with torch.inference_mode():
            answer = model(**tokenizer(text, return_tensors="pt"))
        return np.array((answer.logits[0] if classifies else answer.last_hidden_state[0, -1]).tolist())

    distances = []
    for row in rows:
        first, second = outputs(base.eval(), row["text"]), outputs(ours, row["text"])
        if classifies:
            p, q = (np.exp(each) / np.exp(each).sum() for each in (first, second))
            distances.append((p * np.log(p / q)).sum())
        else:
            distances.append(1 - first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    found = record.networks[-1].quality["distance"].value
    assert len(rows) == 16 and found == pytest.approx(np.mean(distances), rel=0.1)
    assert found > record.networks[0].quality["distance"].value


def test_the_stock_file_of_an_embedding_model(tiny_models: TinyModels, tmp_path: Path) -> None:
    """optimum-cli's file of a decoder has an input for positions, which its own class leaves unset (optimum-intel 2.2)."""
    base, files = write_base(tiny_models, tmp_path / "base", classifies=False), tmp_path / "stock"
    architecture = open_source(str(base)).architecture
    options = {**optimum_options(architecture, "int8"), "weight-format": "fp32"}
    run_optimum(Command("optimum-cli export openvino", None, {"model": base, "": files}, options), ())
    ids = np.array([[5, 6, 7, 8, 9], [6, 5, 8, 7, 9]])
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(base).eval()(torch.from_numpy(ids)).last_hidden_state.numpy()
    infer = open_model(files / "openvino_model.xml", "CPU", EXACT)
    assert np.abs(infer({"input_ids": ids, "attention_mask": np.ones_like(ids)}) - expected).max() < 1e-4
    runner = ClassifierRunner(Variant("stock", "ir-classifier", files, "CPU", properties=EXACT), 1)
    runner.run(ids.tolist(), 0)
    assert np.abs(runner._loaded.get_output_tensor(0).data - expected).max() < 1e-4
