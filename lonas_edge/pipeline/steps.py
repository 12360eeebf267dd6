"""Bookkeeping of the steps: which are finished, with what settings, and which a change of options affects."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import json_sha256
from lonas_edge.pipeline.display import duration
from lonas_edge.progress import Progress
from lonas_edge.schema import Record, differences

STEPS = "steps.json"
_OPTION = re.compile(r"(?<!\S)--[a-z]")


@dataclass(frozen=True)
class PlannedStep:
    """A step before it runs.

    Attributes:
        name: Its name.
        command: The command that does the same.
        settings: What its result depends on besides earlier steps, as JSON.
        needs: Names of the steps whose results it uses.
        outputs: Files and directories that it writes, relative to the working directory. They appear whole.
        run: Does the work; called again after an interruption.
        machine: The processor whose latency it measures; empty for steps that measure none.
        folder: A directory that holds more than the outputs and is deleted with them, if any.
        short: Whether it is repeated without asking when what it needs has changed.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Progress], None]
    machine: str = ""
    folder: str = ""
    short: bool = False


@dataclass(frozen=True)
class StepState:
    """A step that was started.

    Attributes:
        settings: Its settings.
        key: A hash of them and of those of the steps that it depends on.
        machine: The processor whose latency it measured, if any.
        seconds: Its duration so far, over interruptions.
        needs: Names of the steps whose results it uses.
    """

    settings: dict[str, Any]
    key: str
    machine: str
    seconds: float
    needs: tuple[str, ...]


@dataclass(frozen=True)
class StepsRecord(Record):
    """The states of steps, and their estimated seconds before the start, by name."""

    NAME: ClassVar = "compress-steps"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Delete the working directory to start again."

    states: dict[str, StepState] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)


class Steps:
    """The steps of a run in its working directory. States are written before and after each step."""

    def __init__(self, folder: Path, planned: Sequence[PlannedStep], clock: Callable[[], float] = time.monotonic):
        """Read the states of an earlier run."""
        self.folder, self.planned, self._clock = folder, {step.name: step for step in planned}, clock
        file = folder / STEPS
        record = StepsRecord.read(file) if file.exists() else StepsRecord()
        self.states, self.estimates = dict(record.states), dict(record.estimates)

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Keep the first estimate of each step."""
        self.estimates = {**seconds, **self.estimates}
        self._write()

    def key(self, name: str) -> str:
        """A hash of a step's settings and of those of all steps that it depends on."""
        step = self.planned[name]
        content = [dict(step.settings), [self.key(needed) for needed in step.needs]]
        return json_sha256(content)[:16]

    def done(self, name: str) -> bool:
        """Whether a step ran with the planned settings, and its outputs exist."""
        state, step = self.states.get(name), self.planned[name]
        outputs = all((self.folder / output).exists() for output in step.outputs)
        return state is not None and state.key == self.key(name) and outputs

    def prepare(self, overwrite: bool, notify: Callable[[str], None]) -> None:
        """Compare the settings of earlier steps, and discard results that no longer apply.

        Raises:
            LonasEdgeError: If options of started steps have changed and `overwrite` is False; all are named.
        """
        changed: dict[str, list[str]] = {}
        for name in self.planned:
            for line in self._changed(name):
                changed.setdefault(line, []).append(name)
        if not overwrite:
            raise_all(
                "Options of started steps have changed:",
                [f"{line} ({', '.join(names)})" for line, names in changed.items()],
                "Restore them, or pass --overwrite to repeat these steps and those that depend on them.",
            )
        for name in [name for name, state in self.states.items() if name in self.planned and state.key != self.key(name)]:
            self._discard(name)
        for name in self._of_other_machines(notify):
            self._discard(name)
        self._write()

    def _of_other_machines(self, notify: Callable[[str], None]) -> list[str]:
        """Steps whose latencies are those of another machine, and which nothing was built on; others are only stated."""
        repeated = []
        for name, step in self.planned.items():
            before = self.states[name].machine if name in self.states else step.machine
            if before == step.machine or not step.machine:
                continue
            if any(name in other.needs and other.name in self.states for other in self.planned.values()):
                notify(f"{name}: keeps the latencies of another machine ({before}); its network is already being trained")
            else:
                notify(f"{name}: repeated; its latencies are those of another machine ({before})")
                repeated.append(name)
        return repeated

    def _changed(self, name: str) -> list[str]:
        state, step = self.states.get(name), self.planned[name]
        if state is None:
            return []
        changed = differences(state.settings, _plain(step.settings))
        same = step.short or set(state.needs) == set(step.needs)
        return changed if same else [*changed, f"uses {', '.join(step.needs)}; it used {', '.join(state.needs)}"]

    def _discard(self, name: str) -> None:
        del self.states[name]
        self.estimates.pop(name, None)
        step = self.planned[name]
        for output in filter(None, (*step.outputs, step.folder)):
            path = self.folder / output
            for each in (path, path.with_name(f"{path.name}.partial")):
                shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)

    def pending(self) -> list[str]:
        """The steps to run, in order: those that are not done and whose results something still needs."""
        needed = {need for step in self.planned.values() for need in step.needs}
        order: list[str] = []

        def require(name: str) -> None:
            if name not in order and not self.done(name):
                for need in self.planned[name].needs:
                    require(need)
                order.append(name)

        for name in self.planned:
            if name not in needed:
                require(name)
        return sorted(order, key=list(self.planned).index)

    def run(self, progress: Progress) -> None:
        """Run the pending steps."""
        pending = self.pending()
        for number, name in enumerate(pending, 1):
            step, before = self.planned[name], self.states.get(name)
            seconds, start = before.seconds if before else 0.0, self._clock()
            self._store(name, seconds)
            try:
                step.run(_prefixed(progress, name, f"{number}/{len(pending)} "))
            except LonasEdgeError as error:
                if isinstance(error.__cause__, KeyboardInterrupt):
                    raise KeyboardInterrupt from error
                raise LonasEdgeError(f"{name}: {error}{_options_of(step, str(error))}") from error
            finally:
                self._store(name, seconds + self._clock() - start)
            progress(f"{number}/{len(pending)} {name}: {duration(self.states[name].seconds)}\n{name}", None)

    def _store(self, name: str, seconds: float) -> None:
        step = self.planned[name]
        self.states[name] = StepState(_plain(step.settings), self.key(name), step.machine, round(seconds, 2), step.needs)
        self._write()

    def _write(self) -> None:
        StepsRecord(self.states, self.estimates).write(self.folder / STEPS)


def _options_of(step: PlannedStep, message: str) -> str:
    """Say whose options an error names: `compress` has fewer than the command of the step."""
    return f"\nOptions in this message are those of the step's command:\n{step.command}" if _OPTION.search(message) else ""


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    content: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return content


def _prefixed(progress: Progress, name: str, number: str) -> Progress:
    """Put the step before what is being done, and before the lines that stay on the terminal."""

    def report(what: str, done: float | None) -> None:
        *stays, now = what.split("\n")
        progress("\n".join([*(f"{name}: {line}" for line in stays), f"{number}{name}: {now}"]), done)

    return report
