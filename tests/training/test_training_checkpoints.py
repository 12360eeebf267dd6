"""Checkpoints: which are complete; nothing in them is executed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import ADAPTER, write_checkpoint

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.checkpoints import COMPLETE, CheckpointRecord, check, checkpoints, discard, load, mark, unfinished

FILES = (ADAPTER, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A complete checkpoint of step 3."""
    return write_checkpoint(tmp_path, 3)


def refused(checkpoint: Path) -> str:
    with pytest.raises(LonasEdgeError) as raised:
        check(checkpoint)
    return str(raised.value)


def test_a_complete_checkpoint(checkpoint: Path) -> None:
    check(checkpoint)
    content = json.loads((checkpoint / COMPLETE).read_text())
    assert (content["schema"], content["step"]) == ("lonas-edge/training-checkpoint/1", 3)
    assert content["sha256"].keys() == set(FILES)


@pytest.mark.parametrize("name", [*FILES, "../channel_order.safetensors"])
def test_a_missing_changed_or_other_file(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    if not path.exists():
        path.write_bytes(b"order")
        mark(checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refused(checkpoint) == f"{path}: differs from what was saved (SHA-256)"
    path.unlink()
    assert refused(checkpoint).startswith(f"{path}: ")
    if hasattr(os, "mkfifo"):  # reading it would never end
        os.mkfifo(path)
        assert refused(checkpoint).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"{}", b"\0"])
def test_a_damaged_record(checkpoint: Path, content: bytes) -> None:
    (checkpoint / COMPLETE).write_bytes(content)
    assert refused(checkpoint).startswith(f"{checkpoint / COMPLETE}: ")


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_is_executed(checkpoint: Path, tmp_path: Path, save: Callable) -> None:
    save({"state": Malicious(tmp_path / "executed")}, checkpoint / "optimizer.pt")
    with pytest.raises(LonasEdgeError, match=r"optimizer\.pt: cannot be loaded"):
        load(checkpoint / "optimizer.pt")
    assert not (tmp_path / "executed").exists()


def test_sorted_by_their_steps(tmp_path: Path) -> None:
    for step in (9, 100, 30, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2" / COMPLETE).unlink()
    for odd in ("checkpoint-", "checkpoint-x", "checkpoint-07", "checkpoint--1", "checkpoint-1e9", "my-checkpoint-3"):
        (tmp_path / odd).mkdir()
        (tmp_path / odd / COMPLETE).touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-30", "checkpoint-9"]
    assert [path.name for path in unfinished(tmp_path)] == ["checkpoint-2"]


def test_half_discarded_or_half_marked_is_not_complete(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        discard(checkpoint)
    assert unfinished(checkpoint.parent) == [checkpoint]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", killed)
        mark(checkpoint)
    assert unfinished(checkpoint.parent) == [checkpoint]
    mark(checkpoint)
    assert CheckpointRecord.read(checkpoint / COMPLETE).step == 3
