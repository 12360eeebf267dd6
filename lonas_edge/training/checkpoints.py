"""Checkpoints in the working directory of a training. One is complete when its mark, written last, is there.

Only tensors and numbers are loaded: no pickle is read except with `weights_only=True`.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer_pt_utils import safe_globals

from lonas_edge.errors import LonasEdgeError, out_of_memory
from lonas_edge.files import read_by
from lonas_edge.network import adapters
from lonas_edge.network.channel_order import FILE as ORDER

COMPLETE = "complete"
ADAPTER, OPTIMIZER, SCHEDULER, STATE = adapters.SAFETENSORS, "optimizer.pt", "scheduler.pt", "trainer_state.json"
INT8_LAYERS = "int8_layers.json"  # a resumed training keeps their choice


def list_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in a working directory, newest first."""
    return sorted((path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def discard(path: Path) -> None:
    """Remove a file or directory; a checkpoint's mark first, so that an incomplete checkpoint is never marked."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path)


@contextmanager
def saving(checkpoint: Path) -> Iterator[None]:
    """Explain why a checkpoint could not be saved; torch's writer raises nothing but RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise LonasEdgeError(f"Training stopped: {checkpoint} could not be saved (is the disk full?): {reason}.") from error


def load(path: Path) -> Any:
    """Load a file of `torch.save` on the CPU, without executing anything in it."""
    with loading(path), safe_globals():  # transformers 5.5 passes "cpu:0" under torchrun, which torch refuses
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def loading(path: Path) -> Iterator[None]:
    """Name the file of a checkpoint that cannot be loaded, and say how to continue."""
    try:
        with read_by("PyTorch", path):
            yield
    except LonasEdgeError as error:
        checkpoint = path if path.is_dir() else path.parent
        raise LonasEdgeError(f"{error}. Delete {checkpoint} to continue from the checkpoint before it.") from error


@contextmanager
def clearing(folder: Path) -> Iterator[None]:
    """Leave only what a training can continue from in its working directory."""
    clear(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # another disk error would hide the first
            clear(folder)


def clear(folder: Path) -> None:
    """Remove checkpoints that were being written, and without a complete one what they share."""
    complete = list_checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if path not in complete:
            discard(path)
    if not complete:
        for name in (ORDER, INT8_LAYERS):
            discard(folder / name)


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Say how to train with less memory where it ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        advice = "Use a smaller --micro-batch-size or --gradient-checkpointing."
        raise LonasEdgeError(f"Training stopped: out of memory. {advice}") from error
