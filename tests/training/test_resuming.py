"""Seeds, killed and resumed trainings: bitwise as if nothing had happened."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinySource
from training_runs import (
    VARIANTS,
    Watched,
    difference,
    run,
    run_killed,
    same,
    working,
)

from lonas_edge.errors import LonasEdgeError


def test_a_seed_gives_one_adapter(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted("middle-of-epoch")
    torch.manual_seed(1)  # what happened before does not matter
    again = run(llama, data, tmp_path / "again", **VARIANTS["middle-of-epoch"][1])
    same(tmp_path / "again", again, folder, record)
    run(llama, data, tmp_path / "other", seed=43, **VARIANTS["middle-of-epoch"][1])
    assert difference(tmp_path / "other", folder) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(variant: str, llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted(variant)
    output, changes = tmp_path / "out", VARIANTS[variant][1]
    run_killed(llama, data, output, at=5, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    assert [path.name for path in working(output).glob("checkpoint-*")] == ["checkpoint-3"]
    steps = []
    resumed = run(llama, data, output, resume=True, report=lambda step, _steps, log: steps.append(step), **changes)
    assert resumed["resumed_from_step"] == 3
    assert steps[0] == 4
    assert record["resumed_from_step"] is None
    same(output, resumed, folder, record)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_before_the_first_checkpoint(llama: TinySource, data: Path, tmp_path: Path) -> None:
    run_killed(llama, data, tmp_path / "out", at=2)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_checkpoint_is_not_used(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted("middle-of-epoch")
    output, changes = tmp_path / "out", VARIANTS["middle-of-epoch"][1]
    run_killed(llama, data, output, at=7, **changes)
    newest = working(output) / "checkpoint-6"
    assert (working(output) / "checkpoint-3/complete").exists()
    (newest / "complete").unlink()
    (newest / "optimizer.pt").write_bytes(b"cut off")
    (newest / "trainer_state.json").unlink()
    resumed = run(llama, data, output, resume=True, **changes)
    assert resumed["resumed_from_step"] == 3
    same(output, resumed, folder, record)


@pytest.mark.parametrize("name", ["base", "stages"])
def test_resuming_on_something_else_is_refused(llama: TinySource, data: Path, tmp_path: Path, name: str) -> None:
    """Another base of the same architecture, or another schedule over the same groups."""
    source = llama.copied_to(tmp_path)
    run_killed(source, data, tmp_path / "out", at=4, lr=None)
    if name == "base":
        from safetensors.torch import save_file

        tensors = load_file(source.base / "model.safetensors")
        tensors["model.norm.weight"] *= 1.5
        save_file(tensors, source.base / "model.safetensors", metadata={"format": "pt"})
    else:
        content = json.loads(source.space.read_text())
        content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0].update(init_lr=0.5, width_indicator=1)
        source.space.write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError, match="cannot be resumed with other settings"):
        run(source, data, tmp_path / "out", resume=True, lr=None)


def test_resumed_with_other_saving_and_logging(llama: TinySource, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_killed(llama, data, output, at=5)
    found: set[str] = set()
    record = run(
        *(llama, data, output),
        resume=True,
        save_steps=1,
        log_steps=2,
        report=lambda *_: found.update(path.name for path in working(output).glob("checkpoint-*")),
    )
    assert {"checkpoint-4", "checkpoint-5", "checkpoint-7"} <= found
    assert [entry["step"] for entry in record["losses"]] == [1, 2, 3, 4, 6, 8]


def test_checkpoints_do_not_cut_what_is_logged(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """A record is the mean of its steps, also when the training was resumed: by default checkpoints and records meet."""
    changes = {"save_steps": None, "log_steps": 3, "steps": 11}
    expected = run(llama, data, tmp_path / "whole", **changes)
    run_killed(llama, data, tmp_path / "out", at=5, **changes)
    resumed = run(llama, data, tmp_path / "out", resume=True, **changes)
    assert resumed["resumed_from_step"] == 3
    assert [entry["step"] for entry in expected["losses"]] == [3, 6, 9]
    assert resumed["losses"] == expected["losses"]


def test_resumed_with_a_lower_learning_rate(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    """As the error about NaN advises."""
    run_killed(llama, data, tmp_path / "out", at=5, warmup_steps=0)
    watched.updates.clear()
    record = run(llama, data, tmp_path / "out", resume=True, warmup_steps=0, lr=0.001)
    expected = [(0.01 if step < 3 else 0.001) / 2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [entry["learning_rate"] for entry in record["losses"]] == pytest.approx(expected)
    assert [update.lr for update in watched.updates] == pytest.approx(expected[3:])
