"""The working directory OUTPUT.training: what an unfinished training keeps, so that it can be resumed.

It holds the settings, the channel order, and checkpoints. Its lock is held as long as the training runs.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from safetensors import SafetensorError

from lonas_edge.errors import LonasEdgeError, out_of_memory, raise_all
from lonas_edge.files import sha256
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.correction import FILE as CORRECTION
from lonas_edge.output import locked
from lonas_edge.schema import Record
from lonas_edge.training.checkpoints import NotSavedError, check, check_files, checkpoints, discard, step_of, unfinished
from lonas_edge.training.elastic_trainer import NotFiniteError
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.plan import Plan, PlannedStage, TrainOptions

SETTINGS = "settings.json"
_FREE_TO_CHANGE = {"save_steps", "log_steps", "report_to", "lr"}
_AGAIN = "--overwrite, without --resume, starts again."
RUNS = "runs"  # what a logging integration writes
SOLVING = "solving-"  # how the directory begins that holds what solving finds, layer by layer
_OURS = re.compile(
    rf"{re.escape(SETTINGS)}|\.{re.escape(SETTINGS)}\.partial|({re.escape(ORDER)}|{re.escape(CORRECTION)})(\.incomplete)?|{RUNS}|{SOLVING}.*|(checkpoint|damaged)-[0-9]+"
)


@dataclass(frozen=True)
class Settings(Record):
    """What must not change between a training and its resumption.

    Attributes:
        base: SHA-256 of the base's configuration and weights, by file name.
        start: That of the super-adapter's files which one sub-network is trained further from; none without.
        widths: Those of that sub-network.
        teacher: SHA-256 of the teacher's files; none without.
        solve: SHA-256 of what the sub-network is solved on first, and how many prompts of it; None where it is not.
        tokenizer: That of its tokenizer's files.
        data: That of each file of the data, and how often an epoch has its examples.
        search_space: Hash of the search space.
        stages: The `PlannedStage`s without their learning rates.
        processes: How many train in parallel.
        options: How to train; some may change.
    """

    NAME: ClassVar = "training-settings"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "The training cannot be resumed."

    base: dict[str, str]
    start: dict[str, str]
    widths: tuple[int, ...]
    teacher: dict[str, str]
    solve: tuple[str, int] | None
    tokenizer: dict[str, str]
    data: tuple[tuple[str, float], ...]
    search_space: str
    stages: tuple[dict[str, int | float | None], ...]
    processes: int
    options: TrainOptions

    @classmethod
    def of(cls, inputs: Inputs, options: TrainOptions, plan: Plan, processes: int) -> "Settings":
        """The settings of a training that is about to start; hashes the base."""
        folder = inputs.base.folder
        files = [folder / "config.json", *open_base(folder, inputs.architecture, inputs.architecture.head).files]
        tokenizer = [path for path in (folder / "tokenizer.json", folder / "tokenizer.model") if path.exists()]
        return cls(
            base={path.name: sha256(path) for path in files},
            start={path.name: sha256(path) for path in inputs.start.files} if inputs.start else {},
            widths=inputs.start.subnetwork.widths if inputs.start else (),
            teacher={path.name: sha256(path) for path in inputs.teacher.files} if inputs.teacher else {},
            solve=(sha256(Path(inputs.solve.data)), inputs.solve.prompts) if inputs.solve else None,
            tokenizer={path.name: sha256(path) for path in tokenizer},
            data=tuple((sha256(portion.path), portion.weight) for portion in inputs.subject.portions),
            search_space=inputs.space.hash,
            stages=tuple(_compared(stage) for stage in plan.stages),
            processes=processes,
            options=options,
        )

    def changes(self, before: "Settings", files: Mapping[str, Path | str]) -> list[str]:
        """What differs from before, and may not; with the files that some settings are hashes of."""
        found = []
        for name in (field.name for field in fields(self) if field.name != "options"):
            ours, theirs = getattr(self, name), getattr(before, name)
            if ours == theirs:
                continue
            told = [str(files[name])] if name in files else []
            if isinstance(ours, dict):  # hashes by file
                told += sorted(file for file in ours.keys() | theirs.keys() if ours.get(file) != theirs.get(file))
            found.append(": ".join([f"{name}: not the same as before", *([", ".join(told)] if told else [])]))
        was, now = vars(before.options), vars(self.options)
        names = [name for name in now if name not in _FREE_TO_CHANGE and was[name] != now[name]]
        return found + [f"{name}: was {was[name]!r}, is {now[name]!r}" for name in names]


@dataclass(frozen=True)
class Resumption:
    """Where a training goes on.

    Attributes:
        checkpoint: The newest whole checkpoint; None where the training begins at its first step.
        damaged: What is wrong with each newer one.
    """

    checkpoint: Path | None = None
    damaged: tuple[str, ...] = ()

    @property
    def step(self) -> int | None:
        """The step that it goes on from."""
        return step_of(self.checkpoint) if self.checkpoint else None

    def told(self) -> str:
        """What a person reads of it."""
        start = f"from {self.checkpoint}" if self.checkpoint else "from the first step: no checkpoint had been written"
        return "\n".join([*(f"damaged, not used: {fault}" for fault in self.damaged), f"going on {start}"])


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

    @contextmanager
    def held(
        self, settings: Settings, resume: bool, overwrite: bool, files: Mapping[str, Path | str] = MappingProxyType({})
    ) -> Iterator[Resumption]:
        """Open it and hold it while a training runs. What ends the training says what is kept; what is of no use is not left.

        Args:
            settings: The training's.
            resume: Whether it goes on with the one that was killed or stopped.
            overwrite: Whether, if not, such a one is thrown away.
            files: Where the settings that are hashes come from, by name, for the messages.

        Yields:
            Where the training goes on, once the directory is there and locked.

        Raises:
            LonasEdgeError: If it cannot be had, or the training ended early.
        """
        try:
            if resume:
                self._reopen(settings, files)
            else:
                self._make(settings, overwrite)
            with self._locked():
                found = self._newest_whole(settings) if resume else Resumption()
                try:
                    with self._written():
                        self._clear_unfinished()
                        yield found
                finally:
                    with suppress(OSError):  # another disk error would hide the first
                        self._clear_unfinished()
                        if not checkpoints(self.path):
                            self.remove()
        except OSError as error:
            raise LonasEdgeError(f"{self.path}: cannot be written: {error}") from error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say of what ends a training early, wherever it was, what is kept of it.

        Yields:
            While it runs.

        Raises:
            LonasEdgeError: If it was interrupted, has no memory left, or is not finite.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise LonasEdgeError(f"Training interrupted. {self._kept()}") from None
        except NotFiniteError as error:
            kept = self._kept("With a lower --lr, or another --precision from the start, it may not happen again.")
            raise LonasEdgeError(f"Training stopped: {error}. {kept}") from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            advice = "A smaller --micro-batch-size or --gradient-checkpointing needs less."
            raise LonasEdgeError(f"Training stopped: out of memory. {advice} {self._kept()}") from error

    def remove(self) -> None:
        """Remove what a training leaves in it, and the directory if nothing else is there."""
        names = [entry for entry in self.path.iterdir() if _OURS.fullmatch(entry.name)]
        for entry in sorted(names, key=lambda entry: entry.name == SETTINGS):  # while it is there, --resume knows what is left
            discard(entry)
        with suppress(OSError):
            self.path.rmdir()

    def _reopen(self, settings: Settings, files: Mapping[str, Path | str]) -> None:
        if not self.path.is_dir() or not any(self.path.iterdir()):
            raise LonasEdgeError(f"{self.path}: there is no unfinished training to --resume; leave --resume out")
        if not (self.path / SETTINGS).exists():
            self._refuse_foreign()
            raise LonasEdgeError(f"{self.path}: its {SETTINGS} is missing, so that it cannot be resumed. {_AGAIN}")
        try:
            before = Settings.read(self.path / SETTINGS)
        except LonasEdgeError as error:
            raise LonasEdgeError(f"{error}\n{_AGAIN}") from error
        changes = settings.changes(before, files)
        raise_all(
            f"{self.path}: cannot be resumed with other settings than its {SETTINGS} has:", changes, f"Give the same. {_AGAIN}"
        )

    def _make(self, settings: Settings, overwrite: bool) -> None:
        path = self.path
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            known = (path / SETTINGS).exists()
            if not known:
                self._refuse_foreign()
            if not overwrite and known:
                raise LonasEdgeError(f"{path}: an unfinished training is kept there. --resume goes on with it. {_AGAIN}")
            if not overwrite:
                raise LonasEdgeError(f"{path}: holds what a training left, without its {SETTINGS}: no --resume. {_AGAIN}")
            with self._locked():
                self.remove()
            path.mkdir(exist_ok=True)
        settings.write(path / SETTINGS)

    def _refuse_foreign(self) -> None:
        """Whatever is asked: a directory that is the user's is left alone."""
        foreign = sorted(entry.name for entry in self.path.iterdir() if not _OURS.fullmatch(entry.name))
        if foreign:
            raise LonasEdgeError(
                f"{self.path}: is needed for checkpoints, and {foreign[0]} in it is not ours. "
                "Move what is not a training's away, or choose another --output."
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self.path) as ours:
            if not ours:
                raise LonasEdgeError(f"{self.path}: another training is writing there; wait for it, or choose another --output")
            yield

    def _newest_whole(self, settings: Settings) -> Resumption:
        """The checkpoint to go on from; damaged newer ones are set aside, so that new ones can take their places."""
        found, damaged, steps = checkpoints(self.path), [], sum(int(stage["steps"] or 0) for stage in settings.stages)
        for position, checkpoint in enumerate(found):
            try:
                check(checkpoint, settings.processes, steps)
            except LonasEdgeError as error:
                damaged.append(" ".join(str(error).split()).replace(f"{self.path}{os.sep}", ""))
                continue
            for newer in found[:position]:
                aside = newer.with_name(newer.name.replace("checkpoint", "damaged"))
                discard(aside)
                newer.rename(aside)
            return Resumption(checkpoint, tuple(damaged))
        raise_all(f"{self.path}: no checkpoint is whole:", damaged, f"The training cannot be resumed. {_AGAIN}")
        return Resumption()

    def _clear_unfinished(self) -> None:
        for path in unfinished(self.path):
            discard(path)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with self.kept():
                yield
        except NotSavedError as error:
            raise LonasEdgeError(f"Training stopped: {error}. {self._kept()}") from error
        except (OSError, SafetensorError) as error:
            raise LonasEdgeError(f"Training stopped: writing failed: {error}. {self._kept()}") from error

    def _kept(self, advice: str = "") -> str:
        last = next(filter(_as_saved, checkpoints(self.path)), None)
        if last is None:
            return f"No checkpoint had been written yet; nothing is kept. {advice}".strip()
        return f"The last good checkpoint is kept: {last}. The same command with --resume goes on from it. {advice}".strip()


def _as_saved(checkpoint: Path) -> bool:
    try:
        check_files(checkpoint)
    except (LonasEdgeError, OSError):
        return False
    return True


def _compared(stage: PlannedStage) -> dict[str, int | float | None]:
    """What of a stage must not change: not its rate; nor is a depth that is held back told, as earlier versions did not."""
    return {name: value for name, value in asdict(stage).items() if name != "lr" and (name, value) != ("depth_rate", 0)}
