"""Training a classifier on GLUE: losses and whole runs against the oracle, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_bert import LAYERS, TinyBert, oracle_logits, pairs, reranker, tokenizer
from tiny_models import TinyModels, TinySource
from training_runs import without_dropout
from transformers import AutoConfig, AutoModelForSequenceClassification

from lonas_edge import load_checkpoint
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.training.inputs import open_inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

WORDS = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")
LABELS = {"RTE": ("label", "not_entailment", "entailment"), "STS-B": ("score", "0.5", "4.5")}


def write_task(folder: Path, task: str) -> Path:
    """A training file of a task; the first text decides the label."""
    column, *labels = LABELS[task]
    rows = [f"{n}\t{WORDS[n % 6]}\t{WORDS[n // 2 % 6]}\t{labels['good' in WORDS[n % 6]]}" for n in range(12)]
    (folder / task).mkdir(exist_ok=True)
    (folder / task / "train.tsv").write_text("\n".join([f"index\tsentence1\tsentence2\t{column}", *rows]) + "\n")
    return folder / task / "train.tsv"


OPTIONS = {"rank": 8, "alpha": 16, "steps": 6, "save_steps": 3, "log_steps": 1, "batch_size": 4, "lr": 0.01, "device": "cpu"}


def run(source: TinySource, data: Path, output: Path, **changes: Any) -> TrainingRecord:
    inputs = open_inputs(str(source.base), data, source.space)
    record = train(inputs, output, TrainOptions(**{**OPTIONS, **changes}))
    assert record and TrainingRecord.read(output / "training.json") == record
    return record


@pytest.mark.parametrize(("task", "reorder"), [("RTE", True), ("STS-B", False)])
def test_a_super_adapter(task: str, reorder: bool, tiny_bert: TinyBert, materialize: Callable, tmp_path: Path) -> None:
    """The base has no head; the adapter has one."""
    source = tiny_bert.source()
    record = run(source, write_task(tmp_path, task), tmp_path / "out", reorder=reorder)
    assert (record.task, record.prompt, record.options["max_length"]) == (task, None, 64)
    assert record.data[0].examples == 12 and record.data[0].kind == "glue" and record.losses[-1].loss is not None
    opened = open_source(str(tmp_path / "out"))
    labels = ["entailment", "not_entailment"] if task == "RTE" else ["score"]
    assert list(opened.architecture.config.id2label.values()) == labels
    assert (tmp_path / "out/channel_order.safetensors").exists() == reorder
    widths = [32, 48, 64, 6, 8, 6, 64, 128, 96]
    expected = oracle_logits(source.base, tmp_path / "out", source.space, widths, pairs())
    folder = materialize(opened, widths)
    with torch.inference_mode():
        assert (load_checkpoint(folder, torch.float64)(**pairs()).logits - expected).abs().max() < 1e-5
    assert json.loads((folder / "config.json").read_text()).get("problem_type") in (
        [None, "single_label_classification"] if task == "RTE" else ["regression"]
    )


@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_int4_keeps_layers_in_int8(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Of classes and of a regression; query, key and value together."""
    source = tiny_bert.source(1 if task == "STS-B" else 2)
    record = run(source, write_task(tmp_path, task), tmp_path / "super", weight_format="int4_sym", ratio=0.5, steps=1)
    assert record.int8_layers
    for index in range(LAYERS):
        own = {name.rpartition(".")[2] for name in record.int8_layers if f"layer.{index}.attention.self" in name}
        assert own in (set(), {"query", "key", "value"})


def test_data_of_another_task(tiny_bert: TinyBert, tiny_models: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"classification \(2 outputs\), and STS-B is a regression \(1 output\)"):
        open_inputs(str(tiny_bert.base()), write_task(tmp_path, "STS-B"))
    with pytest.raises(LonasEdgeError, match=r"the task RTE of GLUE works on a sequence classifier; phi3 is a causal"):
        open_inputs(str(tiny_models.base("phi3")), write_task(tmp_path, "RTE"))
    (tmp_path / "data.json").write_text('[{"instruction": "a", "output": "b"}]')
    with pytest.raises(LonasEdgeError, match=r"data\.json: not sentences:\n  - record 1: found the fields instruction, output"):
        open_inputs(str(tiny_bert.base()), tmp_path / "data.json")


@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_a_recovery_with_a_teacher(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The loss is the distance from the unpruned classifier, though all labels are wrong; the head is trained, too."""
    base, data = without_dropout(tiny_bert.base(headless=True), tmp_path / "base"), write_task(tmp_path, task)
    source = TinySource("bert", base, base, tiny_bert.space())
    run(source, data, tmp_path / "super", steps=40)
    first, second = LABELS[task][1:]
    data.write_text(data.read_text().replace(first, "x").replace(f"\t{second}", f"\t{first}").replace("x", second))
    inputs = with_teacher(open_recovery(str(tmp_path / "super"), data, "minimal"), str(tmp_path / "super"))
    record = train(inputs, tmp_path / "recovered", TrainOptions(**{**OPTIONS, "batch_size": 12, "steps": 40, "lr": 3e-3}))
    assert record and record.recovered and record.teacher and record.teacher.name == "super"
    maximal, minimal = ([width for width in widths for _ in range(LAYERS)] for widths in ((64, 8, 128), (32, 6, 64)))

    texts = tokenizer()(*([WORDS[n // step % 6] for n in range(12)] for step in (1, 2)), padding=True, return_tensors="pt")

    def logits(name: str, widths: list[int]) -> torch.Tensor:
        return oracle_logits(source.base, tmp_path / name, source.space, widths, dict(texts))

    unpruned = logits("super", maximal)

    def distance(name: str) -> float:
        ours = logits(name, minimal)
        if task == "STS-B":
            return (ours - unpruned).pow(2).mean().item()
        return (unpruned.softmax(-1) * (unpruned.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean().item()

    before, after = distance("super"), distance("recovered")
    assert record.losses[0].loss == pytest.approx(before, rel=1e-4) and after < 0.5 * before
    heads = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("super", "recovered")]
    [name] = [name for name in heads[0] if name.endswith("classifier.weight")]
    assert 0 < (heads[1][name] - heads[0][name]).abs().max() < 1
    card = (tmp_path / "recovered/README.md").read_text()
    assert "The loss is the distance of the outputs from those of the frozen teacher `super`." in card


@pytest.mark.parametrize("new", [False, True])
def test_a_base_with_classes_in_another_order(new: bool, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Its names stay, and labels count by name: the first held-out loss is the base's own cross-entropy, by the oracle."""
    names, data = ["Not_Entailment", "ENTAILMENT"], write_task(tmp_path, "RTE")
    base, space = reranker(tiny_bert, tmp_path / "base", 2, names), tiny_bert.space()
    inputs = open_inputs(str(base), data) if new else open_recovery(str(base), data, "minimal", None, space)
    options = {**OPTIONS, "steps": 40, "lr": 3e-3, "dtype": "fp32"}
    record = train(with_eval_data(inputs, data), tmp_path / "out", TrainOptions(**options))
    opened = open_source(str(tmp_path / "out"))
    assert list(opened.architecture.config.id2label.values()) == names
    texts = [line.split("\t")[1:] for line in data.read_text().splitlines()[1:]]
    encoded = tokenizer()([row[0] for row in texts], [row[1] for row in texts], padding=True, return_tensors="pt")
    labels = torch.tensor([names.index("ENTAILMENT" if row[2] == "entailment" else "Not_Entailment") for row in texts])
    widths = [width for each in ((64, 8, 128) if new else (32, 6, 64)) for width in [each] * LAYERS]

    def loss(adapter: Path | None) -> float:
        logits = oracle_logits(base, adapter, space, widths, dict(encoded))
        return -logits.log_softmax(-1)[range(12), labels].mean().item()

    assert record and record.eval_data
    losses = [entry.loss for entry in record.eval_data.losses]
    assert losses[0] == pytest.approx(loss(None), rel=1e-3) and losses[-1] == pytest.approx(loss(tmp_path / "out"), rel=1e-3)
    assert losses[-1] < 0.9 * losses[0]  # it learned the labels by name, too
    export(opened, opened.select(), tmp_path / "model", ExportOptions(stage="checkpoint", verify=False))
    assert json.loads((tmp_path / "model/config.json").read_text())["id2label"] == dict(zip("01", names, strict=True))


def test_teachers_of_another_task(tiny_bert: TinyBert, tmp_path: Path) -> None:
    source, data = tiny_bert.source(), write_task(tmp_path, "RTE")
    run(source, data, tmp_path / "super")
    inputs = open_recovery(str(tmp_path / "super"), data, "minimal")
    config = AutoConfig.from_pretrained(tiny_bert.base(), id2label={0: "duplicate", 1: "not_duplicate"})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "named")
    tokenizer().save_pretrained(tmp_path / "named")
    with pytest.raises(LonasEdgeError, match="outputs duplicate, not_duplicate, and those of the training are entailment"):
        with_teacher(inputs, str(tmp_path / "named"))
    with pytest.raises(
        LonasEdgeError, match=r"cannot teach a sequence classifier\. A sentence embedding model has .*modules.json"
    ):
        with_teacher(inputs, str(tiny_bert.body()))
