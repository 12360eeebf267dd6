"""Checkpoints: which are complete; nothing in them is executed."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import write_checkpoint

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.checkpoints import COMPLETE, clear, list_checkpoints, load


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A complete checkpoint of step 3."""
    return write_checkpoint(tmp_path, 3)


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_is_executed(checkpoint: Path, tmp_path: Path, save: Callable) -> None:
    save({"state": Malicious(tmp_path / "executed")}, checkpoint / "optimizer.pt")
    with pytest.raises(LonasEdgeError, match=rf"optimizer\.pt: PyTorch cannot read it: (?s:.*)Delete {checkpoint}"):
        load(checkpoint / "optimizer.pt")
    assert not (tmp_path / "executed").exists()


def test_sorted_by_their_steps(tmp_path: Path) -> None:
    for step in (9, 100, 30, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2" / COMPLETE).unlink()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-30", "checkpoint-9"]
    clear(tmp_path)
    assert not (tmp_path / "checkpoint-2").exists()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-30", "checkpoint-9"]
