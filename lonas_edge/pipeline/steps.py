"""Steps as data: what each one runs with, what it needs, and which of them are finished.

A step holds the commands that do the same. Its key is a hash of their options: a changed option repeats exactly the steps that
it affects.
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lonas_edge.commands import Command, to_argv
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import json_sha256
from lonas_edge.progress import Progress
from lonas_edge.schema import Record, differences
from lonas_edge.tables import duration

STEPS = "steps.json"
LORA, TRIM, SPACE, SEARCH, BASELINES, GPTQ = "fine-tune", "trim", "space", "search", "baselines", "gptq"  # names of steps
CHOOSE, RECOVER, EXPORT = "choose ", "recover ", "export "  # followed by a target
DRAFT_STEP, MEASURE = "draft", "measure"


@dataclass(frozen=True)
class Step:
    """A step of a run."""

    name: str
    commands: Sequence[Command]  # that do the same
    function: Callable[[Progress], None]  # does the work; called again after an interruption
    outputs: tuple[str, ...]  # files and directories that it writes in the working directory; they appear whole
    needs: tuple[str, ...] = ()  # names of the steps whose results it uses
    inputs: Mapping[str, str] = field(default_factory=dict)  # hashes of its other inputs, by name
    folder: str = ""  # a directory that holds more than the outputs and is deleted with them, if any
    quick: bool = False  # whether it is repeated without asking
    estimate: float | None = None  # seconds; None for steps that take minutes
    chosen: Callable[[], Sequence[Command]] | None = None  # the commands of the finished step, where earlier steps decide

    @property
    def command(self) -> str:
        """The commands, for a shell."""
        return _in_shell(self.commands)

    @property
    def finished_command(self) -> str:
        """The commands that did what the finished step did."""
        return _in_shell(self.chosen() if self.chosen else self.commands)

    @property
    def settings(self) -> dict[str, Any]:
        """What its result depends on, as JSON gives it back."""
        settings: dict[str, Any] = {**self.inputs, "steps before": list(self.needs)}
        for command in self.commands:
            settings |= command.settings
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain


@dataclass(frozen=True)
class StepState:
    """A step that was started."""

    settings: dict[str, Any]  # what its result depends on
    key: str  # a hash of them and of those of the steps that it needs
    seconds: float  # so far, over interruptions
    estimate: float | None = None  # when it was started first


@dataclass(frozen=True)
class StepsRecord(Record):
    """The states of steps by name."""

    NAME: ClassVar = "compress-steps"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Delete the working directory to start again."

    states: dict[str, StepState] = field(default_factory=dict)


class Steps:
    """The steps of a run in its working directory. States are written before and after each step."""

    def __init__(self, folder: Path, steps: Sequence[Step], clock: Callable[[], float] = time.monotonic):
        """Read the states of an earlier run."""
        self.folder, self.planned, self._clock = folder, {step.name: step for step in steps}, clock
        self.states = dict(StepsRecord.read(folder / STEPS).states) if (folder / STEPS).exists() else {}

    def key(self, name: str) -> str:
        """A hash of a step's settings and of those of all steps that it needs."""
        step = self.planned[name]
        return json_sha256([step.settings, [self.key(needed) for needed in step.needs]])[:16]

    def done(self, name: str) -> bool:
        """Whether a step ran with these settings, and its outputs exist."""
        state = self.states.get(name)
        complete = all((self.folder / output).exists() for output in self.planned[name].outputs)
        return state is not None and state.key == self.key(name) and complete

    def prepare(self, overwrite: bool) -> None:
        """Compare the settings of earlier steps, and discard results that no longer apply.

        Raises:
            LonasEdgeError: If options of started steps have changed and `overwrite` is False; all are named.
        """
        changed: dict[str, list[str]] = {}
        for name, step in self.planned.items():
            if name in self.states and not step.quick:
                for line in differences(self.states[name].settings, step.settings):
                    changed.setdefault(line, []).append(name)
        if not overwrite:
            raise_all(
                "Options of started steps have changed:",
                [f"{line} ({', '.join(names)})" for line, names in changed.items()],
                "Restore them, or pass --overwrite to repeat these steps and those that depend on them.",
            )
        for name, step in self.planned.items():
            if name in self.states and self.states[name].key != self.key(name):
                self._discard(step)
        self._write()

    def _discard(self, step: Step) -> None:
        del self.states[step.name]
        for output in filter(None, (*step.outputs, step.folder)):
            for path in (self.folder / output, self.folder / f"{output}.partial"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def pending(self) -> list[str]:
        """The steps to run, in order: those that are not done and whose results something still needs."""
        needed = {need for step in self.planned.values() for need in step.needs}
        pending: set[str] = set()
        for name in reversed(self.planned):
            wanted = name not in needed or any(name in self.planned[later].needs for later in pending)
            if wanted and not self.done(name):
                pending.add(name)
        return [name for name in self.planned if name in pending]

    def run(self, progress: Progress) -> None:
        """Run the pending steps."""
        pending = self.pending()
        for number, name in enumerate(pending, 1):
            step, start = self.planned[name], self._clock()
            before = self.states[name].seconds if name in self.states else 0.0
            self._store(step, before)
            try:
                step.function(_with_name(progress, name, f"{number}/{len(pending)} "))
            except LonasEdgeError as error:
                if isinstance(error.__cause__, KeyboardInterrupt):
                    raise KeyboardInterrupt from error
                hint = (
                    f"\nOptions in this message are those of the step's command:\n{step.command}" if "--" in str(error) else ""
                )
                raise LonasEdgeError(f"{name}: {error}{hint}") from error
            finally:
                self._store(step, before + self._clock() - start)
            progress(f"{number}/{len(pending)} {name}: {duration(self.states[name].seconds)}\n{name}", None)

    def _store(self, step: Step, seconds: float) -> None:
        known = self.states.get(step.name)
        estimate = known.estimate if known else step.estimate
        self.states[step.name] = StepState(step.settings, self.key(step.name), round(seconds, 2), estimate)
        self._write()

    def _write(self) -> None:
        StepsRecord(self.states).write(self.folder / STEPS)


def _in_shell(commands: Sequence[Command]) -> str:
    return "\n".join(shlex.join(to_argv(command)) for command in commands)


def _with_name(progress: Progress, name: str, number: str) -> Progress:
    """Put the step before what is being done, and before the lines that stay on the terminal."""

    def report(what: str, done: float | None) -> None:
        *stays, now = what.split("\n")
        progress("\n".join([*(f"{name}: {line}" for line in stays), f"{number}{name}: {now}"]), done)

    return report
