"""The working directory OUTPUT.training: what an unfinished training keeps, so that it can be resumed.

It holds the settings, the channel order, and checkpoints. Its lock is held as long as the training runs.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import sha256
from lonas_edge.network.checkpoints import open_base
from lonas_edge.output import locked
from lonas_edge.schema import Record
from lonas_edge.training.elastic_trainer import COMPLETE, NotFiniteError
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.plan import Plan, TrainOptions

SETTINGS = "settings.json"
_FREE_TO_CHANGE = {"save_steps", "log_steps", "report_to", "lr"}
_WAY_OUT = "Give the same; or start again, with --overwrite and without --resume."


@dataclass(frozen=True)
class Settings(Record):
    """What must not change between a training and its resumption.

    Attributes:
        base: SHA-256 of the base's configuration and weights, by file name.
        tokenizer: That of its tokenizer's files.
        data: That of the data.
        search_space: Hash of the search space.
        stages: The `PlannedStage`s without their learning rates.
        processes: How many train in parallel.
        options: How to train; some may change.
    """

    NAME: ClassVar = "training-settings"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Start again, with --overwrite and without --resume."

    base: dict[str, str]
    tokenizer: dict[str, str]
    data: str
    search_space: str
    stages: tuple[dict[str, int | None], ...]
    processes: int
    options: TrainOptions

    @classmethod
    def of(cls, inputs: Inputs, options: TrainOptions, plan: Plan, processes: int) -> "Settings":
        """The settings of a training that is about to start; hashes the base."""
        folder = inputs.base.folder
        files = [folder / "config.json", *open_base(folder, inputs.architecture).files]
        tokenizer = [path for path in (folder / "tokenizer.json", folder / "tokenizer.model") if path.exists()]
        return cls(
            base={path.name: sha256(path) for path in files},
            tokenizer={path.name: sha256(path) for path in tokenizer},
            data=sha256(inputs.data),
            search_space=inputs.space.hash,
            stages=tuple({k: v for k, v in asdict(stage).items() if k != "lr"} for stage in plan.stages),
            processes=processes,
            options=options,
        )

    def changes(self, before: "Settings") -> list[str]:
        """What differs from before, and may not."""
        names = [field.name for field in fields(self) if field.name != "options"]
        found = [f"{name}: not the same as before" for name in names if getattr(self, name) != getattr(before, name)]
        was, now = vars(before.options), vars(self.options)
        names = [name for name in now if name not in _FREE_TO_CHANGE and was[name] != now[name]]
        return found + [f"{name}: was {was[name]!r}, is {now[name]!r}" for name in names]


@dataclass(frozen=True)
class WorkingDirectory:
    """A directory beside the output, which itself appears whole."""

    path: Path

    @classmethod
    def of(cls, output: Path) -> "WorkingDirectory":
        """The working directory of an output; it need not exist."""
        path = output.absolute()
        if not path.name:
            raise LonasEdgeError(f"{output}: not a place for a super-adapter; choose another --output")
        return cls(path.with_name(f"{path.name}.training"))

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = [path for path in self.path.glob("checkpoint-*") if (path / COMPLETE).exists()]
        return max(found, key=step_of, default=None)

    @contextmanager
    def held(self, settings: Settings, resume: bool, overwrite: bool) -> Iterator[None]:
        """Open it and hold it while a training runs. What ends the training says what is kept; what is of no use is not left.

        Args:
            settings: The training's.
            resume: Whether it goes on with the one that was killed or stopped.
            overwrite: Whether, if not, such a one is thrown away.

        Yields:
            Once the directory is there and locked.

        Raises:
            LonasEdgeError: If it cannot be had, or the training ended early.
        """
        if resume:
            self._reopen(settings)
        else:
            self._make(settings, overwrite)
        with locked(self.path) as ours:
            if not ours:
                raise self._busy()
            try:
                with self._ended():
                    self._clear_incomplete()
                    yield
            finally:
                if self.last_checkpoint() is None:
                    shutil.rmtree(self.path, ignore_errors=True)

    def _reopen(self, settings: Settings) -> None:
        if not (self.path / SETTINGS).exists():
            raise LonasEdgeError(f"{self.path}: there is no unfinished training to --resume")
        changes = settings.changes(Settings.read(self.path / SETTINGS))
        raise_all(f"{self.path}: cannot be resumed with other settings:", changes, _WAY_OUT)

    def _make(self, settings: Settings, overwrite: bool) -> None:
        path = self.path
        if path.exists() and not (path / SETTINGS).exists():
            raise LonasEdgeError(f"{path}: is needed for checkpoints, and is not ours. Move it, or choose another --output.")
        if path.exists() and not overwrite:
            raise LonasEdgeError(
                f"{path}: an unfinished training is kept there. --resume goes on with it; --overwrite starts again."
            )
        if path.exists():
            with locked(path) as free:
                if not free:
                    raise self._busy()
                shutil.rmtree(path)
        try:
            path.mkdir(parents=True)
            settings.write(path / SETTINGS)
        except OSError as error:
            raise LonasEdgeError(f"{path}: cannot be written: {error}") from error

    def _busy(self) -> LonasEdgeError:
        return LonasEdgeError(f"{self.path}: another training is writing there; wait for it, or choose another --output")

    def _clear_incomplete(self) -> None:
        for path in self.path.glob("checkpoint-*"):
            if not (path / COMPLETE).exists():
                shutil.rmtree(path)

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """Say of what ends a training early what is kept of it."""
        try:
            yield
        except KeyboardInterrupt:
            raise LonasEdgeError(f"Training interrupted. {self._kept()}") from None
        except NotFiniteError as error:
            kept = self._kept("With a lower --lr, or another --precision from the start, it may not happen again.")
            raise LonasEdgeError(f"Training stopped: {error}. {kept}") from error
        except (OSError, SafetensorError) as error:
            raise LonasEdgeError(f"Training stopped: writing failed: {error}. {self._kept()}") from error
        except torch.OutOfMemoryError as error:
            advice = "A smaller --micro-batch-size or --gradient-checkpointing needs less."
            raise LonasEdgeError(f"Training stopped: out of memory. {advice} {self._kept()}") from error

    def _kept(self, advice: str = "") -> str:
        last = self.last_checkpoint()
        if last is None:
            return f"No checkpoint had been written yet; nothing is kept. {advice}".strip()
        return f"The last good checkpoint is kept: {last}. The same command with --resume goes on from it. {advice}".strip()


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])
