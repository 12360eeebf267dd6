"""A training in the working directory of its output: its identity, where it continues, and why it stopped early."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lonas_edge.errors import LonasEdgeError, out_of_memory
from lonas_edge.files import sha256
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.source import fingerprint
from lonas_edge.training.checkpoints import NotSavedError, check, checkpoints, discard, step_of, unfinished
from lonas_edge.training.elastic_trainer import NotFiniteError
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.mixed import FILE as INT8_LAYERS
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.schedule import Schedule

RUNS = "runs"  # written by a logging integration
_FREE_TO_CHANGE = {"save_steps", "log_steps", "eval_steps", "report_to", "lr"}


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of the inputs' files, by name; `data` in the order of the files."""

    base: dict[str, str]
    tokenizer: dict[str, str]
    start: dict[str, str]
    teacher: dict[str, str]
    data: tuple[str, ...]
    eval_data: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: Inputs) -> "Hashes":
        """Hash the files of the inputs."""
        folder = inputs.base.folder
        tokenizer = [path for path in (folder / "tokenizer.json", folder / "tokenizer.model") if path.exists()]

        def hashed(files: list[Path] | tuple[Path, ...]) -> dict[str, str]:
            return {path.name: sha256(path) for path in files}

        return cls(
            fingerprint(folder),
            hashed(tokenizer),
            hashed(inputs.start.files) if inputs.start else {},
            hashed(inputs.teacher.files) if inputs.teacher else {},
            tuple(sha256(file.path) for file in inputs.data.files),
            tuple(sha256(file.path) for file in (inputs.eval_data.files if inputs.eval_data else ())),
        )


def identity(inputs: Inputs, hashes: Hashes, options: TrainOptions, schedule: Schedule, processes: int) -> dict[str, Any]:
    """Collect the settings and hashes that a resumed training must share, as JSON."""
    files = enumerate(zip(inputs.data.files, hashes.data, strict=True), 1)
    content = {
        **asdict(hashes),
        "data": {f"{number} {file.path.name}": [digest, file.weight] for number, (file, digest) in files},
        **({"pooling": asdict(inputs.data.pooling)} if inputs.data.pooling else {}),
        "widths": inputs.start.subnetwork.widths if inputs.start else (),
        "search_space": inputs.space.hash,
        "stages": [{name: value for name, value in asdict(stage).items() if name != "lr"} for stage in schedule.stages],
        "processes": processes,
        "options": {name: value for name, value in asdict(options).items() if name not in _FREE_TO_CHANGE},
    }
    frozen: dict[str, Any] = json.loads(json.dumps(content))
    return frozen


@dataclass(frozen=True)
class Resumption:
    """The checkpoint to continue from (None: the first step), and the problem of each newer one."""

    checkpoint: Path | None = None
    damaged: tuple[str, ...] = ()

    @property
    def step(self) -> int | None:
        """The step to continue from."""
        return step_of(self.checkpoint) if self.checkpoint else None

    def __str__(self) -> str:
        start = f"from step {self.step} ({self.checkpoint})" if self.checkpoint else "from the first step: no checkpoint to use"
        return "\n".join([*(f"damaged, not used: {problem}" for problem in self.damaged), f"continuing {start}"])


def newest_complete(folder: Path) -> Resumption:
    """Find the newest undamaged checkpoint of a working directory; newer ones are deleted."""
    damaged: list[str] = []
    for checkpoint in checkpoints(folder):
        try:
            check(checkpoint)
        except LonasEdgeError as error:
            damaged.append(" ".join(str(error).split()).replace(f"{folder}{os.sep}", ""))
            discard(checkpoint)
        else:
            return Resumption(checkpoint, tuple(damaged))
    if damaged:  # perhaps by a damaged channel order
        for name in (ORDER, INT8_LAYERS):
            (folder / name).unlink(missing_ok=True)
    return Resumption(None, tuple(damaged))


@contextmanager
def stopping(folder: Path | None = None) -> Iterator[None]:
    """Say why a training stopped early, and leave only what it can continue from in its working directory."""
    if folder:
        _clear(folder)
    try:
        yield
    except NotFiniteError as error:
        advice = "Use a lower --lr, or start again with another --precision."
        raise LonasEdgeError(f"Training stopped: {error}. {advice}") from error
    except NotSavedError as error:
        raise LonasEdgeError(f"Training stopped: {error}.") from error
    except (OSError, SafetensorError) as error:
        raise LonasEdgeError(f"Training stopped: writing failed: {error}.") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        advice = "Use a smaller --micro-batch-size or --gradient-checkpointing."
        raise LonasEdgeError(f"Training stopped: out of memory. {advice}") from error
    finally:
        if folder:
            with suppress(OSError):  # another disk error would hide the first
                _clear(folder)


def _clear(folder: Path) -> None:
    for path in unfinished(folder):
        discard(path)
    if not checkpoints(folder):
        for name in (ORDER, INT8_LAYERS, RUNS):
            discard(folder / name)
