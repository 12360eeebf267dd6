"""The record of a training: written and read."""

import json
from pathlib import Path
from typing import Any

from lonas_edge.data.templates import TEMPLATES
from lonas_edge.network.training_record import Logged, Recovered, Taught, TrainedBase, TrainedData, TrainingRecord

CONTENT: dict[str, Any] = {
    "schema": "lonas-edge/training/1",
    "base": {"name": "base", "revision": None, "sha256": {"config.json": "8f40", "model.safetensors": "5e45"}},
    "search_space": "e1b5",
    "recovered": {"super_adapter": "super", "sha256": {}, "subnetwork": "minimal", "widths": [6, 64]},
    "teacher": {"name": "lora", "sha256": {"config.json": "2a"}},
    "data": [{"name": "data.json", "sha256": "e9d4", "kind": "instruction", "weight": 1.0, "examples": 30, "dropped": 2}],
    "task": None,
    "prompt": {
        "name": "question",
        "without_input": "Question: {instruction}\nAnswer:",
        "with_input": "{input}\nQuestion: {instruction}\nAnswer:",
        "response": " {output}",
        "train_on_prompt": False,
        "whole_text": False,
    },
    "chat_template": None,
    "options": {"rank": 8, "alpha": 16.0, "target_modules": ["q_proj"], "epochs": None},
    "reordered": True,
    "stages": [{"first": 0, "steps": 2, "lr": 0.0003, "lr_steps": 2, "width_indicator": None, "sample_rate": 1}],
    "warmup_steps": 0,
    "steps": 2,
    "resumed_from_step": None,
    "damaged_checkpoints": [],
    "seconds": 0.4,
    "device": "cpu",
    "precision": "fp32",
    "processes": 1,
    "losses": [{"step": 1, "loss": 6.76, "learning_rate": 0.00015, "grad_norm": None}],
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "training.json"
    path.write_text(json.dumps(content))
    return path


def test_read_and_written_again(tmp_path: Path) -> None:
    record = TrainingRecord.read(written(tmp_path, CONTENT))
    assert record.base == TrainedBase("base", None, {"config.json": "8f40", "model.safetensors": "5e45"})
    assert record.recovered == Recovered("super", {}, "minimal", (6, 64))
    assert record.teacher == Taught("lora", {"config.json": "2a"})
    assert record.data == (TrainedData("data.json", "e9d4", "instruction", 1.0, 30, 2),)
    assert record.prompt == TEMPLATES["question"]
    assert record.losses == (Logged(1, 6.76, 0.00015, None),)
    record.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == CONTENT
