"""Checkpoints of a training: marked as whole with a hash of every file, and checked before one is gone on from.

Whatever is loaded from one is tensors and numbers: no pickle is read but with `weights_only=True`.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_json, regular, sha256
from lonas_edge.network import adapters
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.correction import FILE as CORRECTION
from lonas_edge.schema import Record

COMPLETE = "complete"  # a checkpoint without this file was being written when the training was killed
ADAPTER, OPTIMIZER, SCHEDULER, STATE = adapters.SAFETENSORS, "optimizer.pt", "scheduler.pt", "trainer_state.json"
_SHARED = (f"../{ORDER}", f"../{CORRECTION}")  # what all checkpoints of a training begin from
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


class NotSavedError(LonasEdgeError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class CheckpointRecord(Record):
    """The file `complete`: what a checkpoint holds.

    Attributes:
        step: The step that it was written after.
        sha256: SHA-256 of each of its files, by name; those of the files that all checkpoints share, too.
    """

    NAME: ClassVar = "training-checkpoint"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = ""

    step: int
    sha256: dict[str, str]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a working directory that were written to their end, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and (path / COMPLETE).exists()]
    return sorted(found, key=step_of, reverse=True)


def unfinished(folder: Path) -> list[Path]:
    """Those that were being written when their training was killed."""
    return [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and not (path / COMPLETE).exists()]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def mark(checkpoint: Path) -> None:
    """Mark a checkpoint as whole.

    Args:
        checkpoint: Its directory, with all of its files.
    """
    names = sorted(path.name for path in checkpoint.iterdir() if path.is_file() and path.name != COMPLETE)
    names += [name for name in _SHARED if (checkpoint / name).exists()]
    CheckpointRecord(step_of(checkpoint), {name: sha256(checkpoint / name) for name in names}).write(checkpoint / COMPLETE)


def discard(path: Path) -> None:
    """Remove a file, a link or a directory; a checkpoint's mark first, so that half of one never looks whole.

    Args:
        path: What to remove.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


@contextmanager
def saving(checkpoint: Path) -> Iterator[None]:
    """Say what could not be saved, and why. torch's writer of zip files knows no error but RuntimeError.

    Args:
        checkpoint: What is being written.

    Yields:
        While it is.

    Raises:
        NotSavedError: If it fails, for another reason than memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError, LonasEdgeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise NotSavedError(f"{checkpoint} could not be saved (is the disk full?): {reason}") from error


def check_files(checkpoint: Path) -> None:
    """Compare the files of a checkpoint with its record. A version before left the record empty: it has no hashes.

    Args:
        checkpoint: Its directory.

    Raises:
        LonasEdgeError: Names the first file that is missing, or is not what was saved.
    """
    regular(checkpoint / COMPLETE, "its record")
    if not (checkpoint / COMPLETE).stat().st_size:
        return
    recorded = CheckpointRecord.read(checkpoint / COMPLETE)
    if recorded.step != step_of(checkpoint):
        raise LonasEdgeError(f"{checkpoint / COMPLETE}: of step {recorded.step}")
    for name, expected in recorded.sha256.items():
        regular(checkpoint / name, "a part of the checkpoint")
        if sha256(checkpoint / name) != expected:
            raise LonasEdgeError(f"{checkpoint / name}: not what was saved; its SHA-256 is another")


def check(checkpoint: Path, processes: int, steps: int) -> None:
    """Refuse a checkpoint that a training would not go on from as if nothing had happened.

    Args:
        checkpoint: Its directory.
        processes: How many train in parallel; each has a random state.
        steps: Those of the whole training.

    Raises:
        LonasEdgeError: Names the file and says what is wrong with it.
    """
    try:
        check_files(checkpoint)
        random = ["rng_state.pth"] if processes == 1 else [f"rng_state_{process}.pth" for process in range(processes)]
        for name in (OPTIMIZER, SCHEDULER, *random):
            load(checkpoint / name)
        _check_adapter(checkpoint / ADAPTER)
        _check_state(checkpoint / STATE, step_of(checkpoint), steps)
    except OSError as error:
        raise LonasEdgeError(f"{checkpoint}: cannot be read: {error}") from error


def load(path: Path) -> Any:
    """Load a file of `torch.save`, and execute nothing of it.

    Args:
        path: The file.

    Returns:
        Its tensors and numbers, on the CPU: transformers 5.5 asks for "cpu:0" under torchrun, which torch refuses.

    Raises:
        LonasEdgeError: If it holds something else.
    """
    regular(path, "a part of the checkpoint")
    with loading(path), safe_globals():
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Name the file that cannot be loaded: damaged ones raise about anything.

    Args:
        path: The file.

    Yields:
        While it is loaded.

    Raises:
        LonasEdgeError: If it fails, for another reason than memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, LonasEdgeError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise LonasEdgeError(f"{path}: cannot be loaded: {type(error).__name__}: {reason}") from error


def _check_adapter(path: Path) -> None:
    regular(path, "the adapter")
    with loading(path), safe_open(path, "pt") as tensors:
        tensors.keys()


def _check_state(path: Path, step: int, steps: int) -> None:
    with loading(path):
        content = read_json(path)
        TrainerState(**content)
        logged = all(type(entry["step"]) is int for entry in content["log_history"])
    if content["global_step"] != step:
        raise LonasEdgeError(f"{path}: global_step is {content['global_step']!r}; expected {step}, as its directory's")
    if step > steps:
        raise LonasEdgeError(f"{path}: global_step is {step}, and the training has {steps} steps")
    if not logged:
        raise LonasEdgeError(f"{path}: log_history is damaged")
