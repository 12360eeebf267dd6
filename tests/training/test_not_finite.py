"""A loss or an adapter that is not finite stops the training, and is not saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinySource
from training_runs import (
    ADAPTER,
    VARIANTS,
    Watched,
    run,
    same,
    working,
)

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.elastic_trainer import ElasticTrainer


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the loss of a step NaN: `nan_at(step)`, from 1."""
    compute_loss = ElasticTrainer.compute_loss

    def spoil(step: int) -> None:
        def broken(self: ElasticTrainer, *arguments: Any, **options: Any) -> Any:
            loss = compute_loss(self, *arguments, **options)
            return loss * math.nan if self.state.global_step + 1 == step else loss

        monkeypatch.setattr(ElasticTrainer, "compute_loss", broken)

    return spoil


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    llama: TinySource, uninterrupted: Callable, tmp_path: Path, nan_at: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder, record = uninterrupted("end-of-epoch")
    output, changes = tmp_path / "out", VARIANTS["end-of-epoch"][1]
    nan_at(5)
    with pytest.raises(LonasEdgeError) as stopped:
        run(llama, data, output, **changes)
    kept = working(output) / "checkpoint-3"
    for text in ("the loss is nan at step 5", f"last good checkpoint is kept: {kept}.", "--resume", "lower --lr"):
        assert text in str(stopped.value)
    assert (kept / "complete").exists()
    assert all(tensor.isfinite().all() for tensor in load_file(kept / ADAPTER).values())
    assert not output.exists()
    monkeypatch.undo()
    resumed = run(llama, data, output, resume=True, **changes)
    same(output, resumed, folder, record)


def test_nan_before_the_first_checkpoint(llama: TinySource, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"the loss is (nan|inf) at step 2\. No checkpoint.*lower --lr"):
        run(llama, data, tmp_path / "out", lr=1e30, warmup_steps=0)
    assert not list(tmp_path.iterdir())


def test_not_finite_adapter_is_not_saved(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    def spoil(step: int, _steps: int, log: Any) -> None:
        if step == 6 and not log:
            with torch.no_grad():
                next(watched.parameters())[1][0, 0] = torch.inf

    with pytest.raises(LonasEdgeError, match=r"holds NaN or Inf after step 6.*checkpoint-3"):
        run(llama, data, tmp_path / "out", report=spoil)
    assert [path.name for path in working(tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "out").exists()


def test_not_finite_adapter_at_the_end_is_not_written(llama: TinySource, data: Path, tmp_path: Path, watched) -> None:
    def spoil(step: int, _steps: int, log: Any) -> None:
        if step == 8 and not log:
            with torch.no_grad():
                next(watched.parameters())[1][0, 0] = torch.nan

    with pytest.raises(LonasEdgeError, match=r"holds NaN or Inf after step 8.*checkpoint-6"):
        run(llama, data, tmp_path / "out", report=spoil)
    assert not (tmp_path / "out").exists()
