"""Checkpoints: what counts as whole, and that nothing in one is executed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import ADAPTER, write_checkpoint

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.checkpoints import (
    COMPLETE,
    CheckpointRecord,
    NotSavedError,
    check,
    checkpoints,
    discard,
    mark,
    saving,
    unfinished,
)

STATE = "trainer_state.json"
FILES = (ADAPTER, "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole one of step 3."""
    return write_checkpoint(tmp_path, 3)


def refused(checkpoint: Path, steps: int = 8, processes: int = 1) -> str:
    """What is said of one that is not whole."""
    with pytest.raises(LonasEdgeError) as raised:
        check(checkpoint, processes, steps)
    return str(raised.value)


def test_a_whole_one(checkpoint: Path) -> None:
    check(checkpoint, 1, 3)
    content = json.loads((checkpoint / COMPLETE).read_text())
    assert (content["schema"], content["step"]) == ("lonas-edge/training-checkpoint/1", 3)
    assert content["sha256"].keys() == set(FILES)


@pytest.mark.parametrize("marked", [True, False], ids=["hashed", "of the version before"])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(checkpoint: Path, name: str, marked: bool) -> None:
    if not marked:
        (checkpoint / COMPLETE).write_bytes(b"")
        check(checkpoint, 1, 3)
    (checkpoint / name).unlink()
    assert refused(checkpoint).startswith(f"{checkpoint / name}: ")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(checkpoint: Path, name: str) -> None:
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)
    assert refused(checkpoint) == f"{checkpoint / name}: not what was saved; its SHA-256 is another"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4", b"[" * 100_000])
def test_what_does_not_load(checkpoint: Path, name: str, content: bytes) -> None:
    """Without hashes, as of the version before, and with those of the damaged file."""
    (checkpoint / name).write_bytes(content)
    for again in (lambda: (checkpoint / COMPLETE).write_bytes(b""), lambda: mark(checkpoint)):
        again()
        assert refused(checkpoint).startswith(f"{checkpoint / name}: ")


@pytest.mark.parametrize(
    "content", [b"garbage", b"{}", b'{"step": 3}', b"\0", b'{"schema": "lonas-edge/training-checkpoint/2"}']
)
def test_a_damaged_record(checkpoint: Path, content: bytes) -> None:
    (checkpoint / COMPLETE).write_bytes(content)
    assert refused(checkpoint).startswith(f"{checkpoint / COMPLETE}: ")


def changed(checkpoint: Path, **changes: object) -> None:
    content = json.loads((checkpoint / STATE).read_text()) | changes
    (checkpoint / STATE).write_text(json.dumps(content))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"global_step": 10**9}, "global_step is 1000000000; expected 3"),
        ({"global_step": "3"}, "global_step is '3'"),
        ({"global_step": None}, "global_step is None"),
        ({"log_history": [{"loss": 3}]}, "'step'"),
        ({"log_history": [{"step": "two"}]}, "log_history is damaged"),
        ({"unheard_of": 3}, "unheard_of"),
    ],
)
def test_a_state_that_is_not_the_step_s(checkpoint: Path, changes: dict[str, object], text: str, marked: bool) -> None:
    changed(checkpoint, **changes)
    if marked:
        mark(checkpoint)
    else:
        (checkpoint / COMPLETE).write_bytes(b"")
    error = refused(checkpoint)
    assert error.startswith(f"{checkpoint / STATE}: ")
    assert text in error


def test_steps_that_the_training_does_not_have(checkpoint: Path) -> None:
    assert "the training has 2 steps" in refused(checkpoint, steps=2)
    renamed = checkpoint.rename(checkpoint.with_name("checkpoint-2"))
    assert refused(renamed) == f"{renamed / COMPLETE}: of step 3"


def test_the_random_state_of_every_process(checkpoint: Path) -> None:
    assert refused(checkpoint, processes=2).startswith(f"{checkpoint / 'rng_state_0.pth'}: ")
    for process in range(2):
        torch.save({}, checkpoint / f"rng_state_{process}.pth")
    mark(checkpoint)
    check(checkpoint, 2, 8)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_is_executed(checkpoint: Path, tmp_path: Path, name: str, save: Callable) -> None:
    save({"state": Malicious(tmp_path / "executed")}, checkpoint / name)
    for again in (lambda: (checkpoint / COMPLETE).write_bytes(b""), lambda: mark(checkpoint)):
        again()
        assert refused(checkpoint).startswith(f"{checkpoint / name}: cannot be loaded")
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="of POSIX systems")
@pytest.mark.parametrize("name", [*FILES, COMPLETE])
def test_a_pipe_in_place_of_a_file(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert refused(checkpoint).startswith(f"{checkpoint / name}: ")


def test_the_channel_order_belongs_to_it(checkpoint: Path) -> None:
    order = checkpoint.with_name("channel_order.safetensors")
    order.write_bytes(b"order")
    mark(checkpoint)
    check(checkpoint, 1, 8)
    order.write_bytes(b"other")
    assert "channel_order.safetensors: not what was saved" in refused(checkpoint)


def test_found_by_their_steps(tmp_path: Path) -> None:
    for step in (9, 100, 30, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2" / COMPLETE).unlink()
    for odd in ("checkpoint-", "checkpoint-x", "checkpoint-07", "checkpoint--1", "checkpoint-1e9", "my-checkpoint-3"):
        (tmp_path / odd).mkdir()
        (tmp_path / odd / COMPLETE).touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-30", "checkpoint-9"]
    assert [path.name for path in unfinished(tmp_path)] == ["checkpoint-2"]


def test_half_discarded_does_not_look_whole(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        discard(checkpoint)
    assert unfinished(checkpoint.parent) == [checkpoint]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed\nframe 1"),
        LonasEdgeError("complete: cannot be written: No space left on device"),
    ],
)
def test_what_cannot_be_saved(checkpoint: Path, error: Exception) -> None:
    with pytest.raises(NotSavedError) as raised, saving(checkpoint):
        raise error
    assert str(raised.value).startswith(f"{checkpoint} could not be saved")
    assert "\n" not in str(raised.value)


def test_marked_whole_or_not_at_all(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / COMPLETE).unlink()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError, match="No space left"):
        patch.setattr(Path, "write_text", full)
        mark(checkpoint)
    assert not (checkpoint / COMPLETE).exists()
    mark(checkpoint)
    assert CheckpointRecord.read(checkpoint / COMPLETE).step == 3
