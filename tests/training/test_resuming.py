"""Killed, interrupted and failed trainings: the error names the kept work, and resuming gives bitwise the same adapter."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinySource
from training_runs import ADAPTER, ORDER, VARIANTS, Watched, difference, names_in, run, run_killed, same, working

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.elastic_trainer import ElasticTrainer

VARIANT = "middle-of-epoch"
CHANGES = VARIANTS[VARIANT][1]
KEPT = [ORDER, "checkpoint-3", "partial.json"]


@pytest.fixture
def killed(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> tuple[Path, Path]:
    """Data and output of a training that was killed after its checkpoints of steps 3 and 6."""
    data = uninterrupted(VARIANT)[0]
    run_killed(llama, data, tmp_path / "out", at=7, **CHANGES)
    assert names_in(working(tmp_path / "out")) == [ORDER, "checkpoint-3", "checkpoint-6", "partial.json"]
    return data, tmp_path / "out"


# resuming


def test_a_seed_gives_one_adapter(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted(VARIANT)
    torch.manual_seed(1)  # the global state must not matter
    again = run(llama, data, tmp_path / "again", **CHANGES)
    same(tmp_path / "again", again, folder, record)
    run(llama, data, tmp_path / "other", seed=43, **CHANGES)
    assert difference(tmp_path / "other", folder) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(variant: str, llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted(variant)
    output, changes = tmp_path / "out", VARIANTS[variant][1]
    run_killed(llama, data, output, at=5, **changes)
    assert names_in(tmp_path) == ["out.partial"]
    assert [path.name for path in working(output).glob("checkpoint-*")] == ["checkpoint-3"]
    steps = []
    resumed = run(llama, data, output, resume=True, report=lambda step, _steps, log: steps.append(step), **changes)
    assert (resumed["resumed_from_step"], record["resumed_from_step"], steps[0]) == (3, None, 4)
    same(output, resumed, folder, record)
    assert names_in(tmp_path) == ["out"]


def test_killed_before_the_first_checkpoint(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """Nothing is kept or resumed."""
    run_killed(llama, data, tmp_path / "out", at=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(LonasEdgeError, match="no unfinished run to resume"):
        run(llama, data, tmp_path / "out", resume=True)


def test_resumed_with_a_lower_learning_rate(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    """The error about NaN advises this."""
    run_killed(llama, data, tmp_path / "out", at=5, warmup_steps=0)
    watched.updates.clear()
    record = run(llama, data, tmp_path / "out", resume=True, warmup_steps=0, lr=0.001)
    expected = [(0.01 if step < 3 else 0.001) / 2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [entry["learning_rate"] for entry in record["losses"]] == pytest.approx(expected)
    assert [update.lr for update in watched.updates] == pytest.approx(expected[3:])


def test_resumed_with_less_memory(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """The error about memory advises this. Only the rounding of sums differs."""
    run(llama, data, tmp_path / "whole")
    run_killed(llama, data, tmp_path / "out", at=5)
    run(llama, data, tmp_path / "out", resume=True, micro_batch_size=2, gradient_checkpointing=True)
    assert difference(tmp_path / "out", tmp_path / "whole") < 1e-4


# damaged checkpoints


def test_a_damaged_checkpoint_is_named(llama: TinySource, uninterrupted: Callable, killed: tuple[Path, Path]) -> None:
    """Without it, the training continues from the one before."""
    data, output = killed
    checkpoint = working(output) / "checkpoint-6"
    path = checkpoint / "optimizer.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LonasEdgeError, match=rf"{path}: PyTorch cannot read it(?s:.*)Delete {checkpoint} to continue"):
        run(llama, data, output, resume=True, **CHANGES)
    (checkpoint / "complete").unlink()  # as one that was being written
    record = run(llama, data, output, resume=True, **CHANGES)
    assert record["resumed_from_step"] == 3
    same(output, record, *uninterrupted(VARIANT)[1:])


# disk, memory, Ctrl-C


def fails(error: BaseException) -> Callable[..., Any]:
    """A `torch.save` that fails at one file of the second checkpoint."""
    save = torch.save

    def failing(content: object, path: Any, *arguments: Any, **options: Any) -> None:
        if str(path).endswith("checkpoint-6/optimizer.pt"):
            Path(path).write_bytes(b"PK")
            raise error
        save(content, path, *arguments, **options)

    return failing


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("[enforce fail] . unexpected pos 64\nframe #0: …"), "could not be saved (is the disk full?"),
        (KeyboardInterrupt(), "interrupted."),
    ],
)
def test_stopped_while_saving(
    llama: TinySource, uninterrupted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error, text: str
) -> None:
    data, output = uninterrupted(VARIANT)[0], tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError) as raised:
        patch.setattr(torch, "save", fails(error))
        run(llama, data, output, **CHANGES)
    assert text in str(raised.value) and "frame" not in str(raised.value)
    assert f"The work so far is kept in {working(output)}" in str(raised.value) and " with --resume" in str(raised.value)
    assert names_in(tmp_path) == ["out.partial"] and names_in(working(output)) == KEPT
    record = run(llama, data, output, resume=True, **CHANGES)
    assert record["resumed_from_step"] == 3
    same(output, record, *uninterrupted(VARIANT)[1:])


# values that are not finite


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    llama: TinySource, uninterrupted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output, compute_loss = uninterrupted(VARIANT)[0], tmp_path / "out", ElasticTrainer.compute_loss

    def broken(self: ElasticTrainer, *arguments: Any, **options: Any) -> Any:
        return compute_loss(self, *arguments, **options) * (math.nan if self.state.global_step == 4 else 1)

    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError, match=r"the loss is nan at step 5\. Use a lower --lr"):
        patch.setattr(ElasticTrainer, "compute_loss", broken)
        run(llama, data, output, **CHANGES)
    assert all(tensor.isfinite().all() for tensor in load_file(working(output) / "checkpoint-3" / ADAPTER).values())
    assert not output.exists()
    same(output, run(llama, data, output, resume=True, **CHANGES), *uninterrupted(VARIANT)[1:])


def test_an_adapter_that_is_not_finite_is_not_saved(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    def spoil(step: int, _steps: int, log: Any) -> None:
        if step == 8 and not log:
            with torch.no_grad():
                next(watched.parameters())[1][0, 0] = torch.inf

    with pytest.raises(LonasEdgeError, match="holds NaN or Inf after step 8"):
        run(llama, data, tmp_path / "out", report=spoil)
    assert [path.name for path in working(tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3", "checkpoint-6"]
    assert not (tmp_path / "out").exists()
