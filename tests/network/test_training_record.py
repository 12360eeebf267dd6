"""The record of a training: written, read, and read as it was before it had a version."""

import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.data.templates import TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.training_record import Logged, Specialized, Taught, TrainedBase, TrainedData, TrainingRecord

OF_VERSION_1: dict[str, Any] = {
    "format": 1,
    "base": {"name": "base", "revision": None, "sha256": {"config.json": "8f40", "model.safetensors": "5e45"}},
    "search_space": "e1b5",
    "data": {"name": "data.json", "sha256": "e9d4", "examples": 30, "left_out": 2},
    "prompt": {
        "name": "question",
        "without_input": "Question: {instruction}\nAnswer:",
        "with_input": "{input}\nQuestion: {instruction}\nAnswer:",
        "response": " {output}",
        "train_on_prompt": False,
        "whole_text": False,
    },
    "options": {"rank": 8, "alpha": 16.0, "target_modules": ["q_proj"], "epochs": None, "elastic": True},
    "reordered": True,
    "stages": [{"first": 0, "steps": 2, "lr": 0.0003, "lr_steps": 2, "width_indicator": None, "sample_rate": 1}],
    "warmup_steps": 0,
    "steps": 2,
    "resumed_from_step": None,
    "seconds": 0.4,
    "device": "cpu",
    "precision": "fp32",
    "processes": 1,
    "losses": [{"step": 1, "loss": 6.76, "learning_rate": 0.00015, "grad_norm": None}, {"step": 2, "loss": 6.5}],
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
}
LATER: dict[str, Any] = {
    "damaged_checkpoints": [],
    "specialized": None,
    "teacher": None,
    "task": None,
    "chat_template": None,
    "data": [{"name": "data.json", "sha256": "e9d4", "kind": "instruction", "weight": 1.0, "examples": 30, "left_out": 2}],
}


def written(folder: Path, content: dict[str, Any]) -> Path:
    """A file with this content."""
    path = folder / "training.json"
    path.write_text(json.dumps(content))
    return path


def test_version_1_is_read(tmp_path: Path) -> None:
    record = TrainingRecord.read(written(tmp_path, OF_VERSION_1))
    assert record.base == TrainedBase("base", None, {"config.json": "8f40", "model.safetensors": "5e45"})
    assert record.data == (TrainedData("data.json", "e9d4", "instruction", 1.0, 30, 2),)
    assert record.prompt == TEMPLATES["question"]
    assert record.losses == (Logged(1, 6.76, 0.00015, None), Logged(2, 6.5, None, None))
    assert (record.search_space, record.reordered, record.steps, record.seconds) == ("e1b5", True, 2, 0.4)
    assert record.options["target_modules"] == ["q_proj"]
    assert record.stages[0] == OF_VERSION_1["stages"][0]


def test_version_2_is_read(tmp_path: Path) -> None:
    """It had a schema, and no damaged checkpoints."""
    content = {"schema": "lonas-edge/training/2"} | {k: v for k, v in OF_VERSION_1.items() if k != "format"}
    record = TrainingRecord.read(written(tmp_path, content))
    assert record == TrainingRecord.read(written(tmp_path, OF_VERSION_1))
    assert record.damaged_checkpoints == ()


def test_version_3_is_read(tmp_path: Path) -> None:
    """It knew no specializing."""
    content = {"schema": "lonas-edge/training/3", **OF_VERSION_1, "damaged_checkpoints": ["checkpoint-3: cut off"]}
    record = TrainingRecord.read(written(tmp_path, {name: value for name, value in content.items() if name != "format"}))
    assert (record.specialized, record.damaged_checkpoints) == (None, ("checkpoint-3: cut off",))


def test_version_4_is_read(tmp_path: Path) -> None:
    """It knew no frozen teacher."""
    made = {"super_adapter": "super", "sha256": {"adapter_config.json": "1f"}, "subnetwork": "minimal", "widths": [6, 64]}
    content = {"schema": "lonas-edge/training/4", **OF_VERSION_1, "damaged_checkpoints": [], "specialized": made}
    record = TrainingRecord.read(written(tmp_path, {name: value for name, value in content.items() if name != "format"}))
    assert record.specialized == Specialized("super", {"adapter_config.json": "1f"}, "minimal", (6, 64), None)
    assert record.teacher is None


def test_version_5_is_read(tmp_path: Path) -> None:
    """It knew one file, of instructions."""
    made = {"damaged_checkpoints": [], "specialized": None, "teacher": {"name": "lora", "sha256": {"config.json": "2a"}}}
    content = {"schema": "lonas-edge/training/5", **OF_VERSION_1, **made}
    record = TrainingRecord.read(written(tmp_path, {name: value for name, value in content.items() if name != "format"}))
    assert record.teacher == Taught("lora", {"config.json": "2a"})
    assert record.data == (TrainedData("data.json", "e9d4", "instruction", 1.0, 30, 2),)
    assert (record.task, record.chat_template) == (None, None)


def test_version_6_is_read(tmp_path: Path) -> None:
    """It solved nothing before it trained."""
    made = {"super_adapter": "super", "sha256": {}, "subnetwork": "minimal", "widths": [6, 64]}
    for special in (made, None):
        content = {"schema": "lonas-edge/training/6", **OF_VERSION_1, **LATER, "specialized": special}
        record = TrainingRecord.read(written(tmp_path, {name: value for name, value in content.items() if name != "format"}))
        assert record.specialized == (Specialized("super", {}, "minimal", (6, 64), None) if special else None)


def test_written_and_read_again(tmp_path: Path) -> None:
    record = TrainingRecord.read(written(tmp_path, OF_VERSION_1))
    record.write(tmp_path / "again.json")
    content = json.loads((tmp_path / "again.json").read_text())
    assert content["schema"] == "lonas-edge/training/7"
    full = {"learning_rate": None, "grad_norm": None}  # what the log did not have
    expected = {**OF_VERSION_1, **LATER, "losses": [{**full, **entry} for entry in OF_VERSION_1["losses"]]}
    assert {name: content[name] for name in content if name != "schema"} == {n: expected[n] for n in expected if n != "format"}
    assert TrainingRecord.read(tmp_path / "again.json") == record


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"schema": "lonas-edge/training/8"}, ["newer lonas-edge", "lonas-edge/training/8", "Update lonas-edge"]),
        ({"format": 8}, ["newer lonas-edge", "Update lonas-edge"]),
        ({"schema": "lonas-edge/manifest/2"}, ["expected schema lonas-edge/training/7", "lonas-edge/manifest/2"]),
        ({"steps": "two", "base": {"name": "base"}}, ["steps: ", "base.revision: ", "base.sha256: "]),
        ({"mine": 1}, ["mine: ", "train again"]),
    ],
)
def test_what_is_not_a_record_is_refused(changes: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    """With its name, and every fault."""
    path = written(tmp_path, OF_VERSION_1 | changes)
    with pytest.raises(LonasEdgeError) as raised:
        TrainingRecord.read(path)
    assert all(text in str(raised.value) for text in [str(path), *texts]), raised.value
