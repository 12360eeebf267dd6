"""Checkpoints of a training: marked as complete with the hash of every file, and checked before one is used.

Only tensors and numbers are loaded: no pickle is read except with `weights_only=True`.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers.trainer_pt_utils import safe_globals

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import regular, sha256
from lonas_edge.network import adapters
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.schema import Record

COMPLETE = "complete"  # a checkpoint without this file was being written when the training was killed
ADAPTER, OPTIMIZER, SCHEDULER, STATE = adapters.SAFETENSORS, "optimizer.pt", "scheduler.pt", "trainer_state.json"
_ORDER = f"../{ORDER}"  # common to all checkpoints of a training
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


class NotSavedError(LonasEdgeError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class CheckpointRecord(Record):
    """The file `complete`: the step of a checkpoint, and SHA-256 of its files and of the files that checkpoints share."""

    NAME: ClassVar = "training-checkpoint"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = ""

    step: int
    sha256: dict[str, str]


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in a working directory, newest first."""
    return sorted((path for path in _directories(folder) if (path / COMPLETE).exists()), key=step_of, reverse=True)


def unfinished(folder: Path) -> list[Path]:
    """List the checkpoints that were being written when their training was killed."""
    return [path for path in _directories(folder) if not (path / COMPLETE).exists()]


def _directories(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name))


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def mark(checkpoint: Path) -> None:
    """Mark a checkpoint as complete."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.is_file() and path.name != COMPLETE)
    names += [_ORDER] if (checkpoint / _ORDER).exists() else []
    CheckpointRecord(step_of(checkpoint), {name: sha256(checkpoint / name) for name in names}).write(checkpoint / COMPLETE)


def discard(path: Path) -> None:
    """Remove a file, link or directory; a checkpoint's mark first, so that an incomplete checkpoint is never marked."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


@contextmanager
def saving(checkpoint: Path) -> Iterator[None]:
    """Explain why a checkpoint could not be saved; torch's writer raises nothing but RuntimeError.

    Raises:
        NotSavedError: If it fails for another reason than memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError, LonasEdgeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise NotSavedError(f"{checkpoint} could not be saved (is the disk full?): {reason}") from error


def check(checkpoint: Path) -> None:
    """Compare the files of a checkpoint with its record."""
    try:
        regular(checkpoint / COMPLETE, "its record")
        recorded = CheckpointRecord.read(checkpoint / COMPLETE)
        if recorded.step != step_of(checkpoint):
            raise LonasEdgeError(f"{checkpoint / COMPLETE}: is of step {recorded.step}")
        for name, expected in recorded.sha256.items():
            regular(checkpoint / name, "a part of the checkpoint")
            if sha256(checkpoint / name) != expected:
                raise LonasEdgeError(f"{checkpoint / name}: differs from what was saved (SHA-256)")
    except OSError as error:
        raise LonasEdgeError(f"{checkpoint}: cannot be read: {error}") from error


def load(path: Path) -> Any:
    """Load a file of `torch.save` on the CPU, without executing anything in it."""
    regular(path, "a part of the checkpoint")
    with loading(path), safe_globals():  # transformers 5.5 passes "cpu:0" under torchrun, which torch refuses
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Name the file that cannot be loaded: damaged ones raise any exception."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, LonasEdgeError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise LonasEdgeError(f"{path}: cannot be loaded: {type(error).__name__}: {reason}") from error
