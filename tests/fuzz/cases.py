"""Cases: number K of seed S is one command with one mutated file, always the same."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from answers import Case, answers_of
from commands import COMMANDS, Command
from inputs import files_of, others_of
from judge import Verdict, judge, quiet
from mutation import Target
from mutators import mutate
from runner import Ran, run_command, run_forked, snapshot

_JUDGING = 180  # seconds


@dataclass(frozen=True)
class Result:
    """A case and its verdict."""

    seed: int
    case: int
    command: str
    family: str
    line: str
    file: str
    mutation: str
    outcome: str
    why: str
    seconds: float

    def __str__(self) -> str:
        """One line."""
        why = " ".join(self.why.split())[:300]
        return (
            f"{self.outcome}: {self.line} | {self.file}: {self.mutation} | {why} | "
            f"{self.family}, seed {self.seed} case {self.case}"
        )


class Cases:
    """Runs cases on copies of the original files."""

    def __init__(self, originals: Path, work: Path, names: Sequence[str] = tuple(COMMANDS)):
        """Set up.

        Args:
            originals: The directory that `make_inputs` wrote.
            work: A directory for the cases.
            names: The commands to draw from.
        """
        self.originals, self.work = originals, work
        self.commands = {name: COMMANDS[name] for name in names}
        self._expected: dict[tuple[str, str], Any] = {}

    def run(self, seed: int, number: int, keep: bool = False) -> tuple[Result, Ran]:
        """Run a case; with `keep` its directory stays."""
        rng = random.Random(f"{seed}:{number}")
        (name,) = rng.choices(list(self.commands), [command.weight for command in self.commands.values()])
        command = self.commands[name]
        family = rng.choice(command.families) if rng.random() < 0.3 else command.families[0]
        home, folder = self.originals / family, self.work / f"{seed}-{number}"
        expected = self._expected_of(name, family)
        file = rng.choice(files_of(command, home))
        _copy_inputs(command, home, folder)
        mutation = mutate(Target(folder / "in" / file, folder / "outside", others_of(self.originals, file), rng))
        before = snapshot(folder)
        ran = run_command(command.arguments, folder, command.seconds)
        verdict = _judged(Case(command, file, mutation, folder, home, ran, before, snapshot(folder), expected))
        line, seconds = f"lonas-edge {command.line}", round(ran.seconds, 2)
        result = Result(seed, number, name, family, line, file, mutation, verdict.outcome, verdict.why, seconds)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return result, ran

    def _expected_of(self, name: str, family: str) -> Any:
        """The answers on the original files, computed once."""
        if (name, family) not in self._expected:
            command, folder = self.commands[name], self.work / f"original-{name}-{family}"
            _copy_inputs(command, self.originals / family, folder)
            ran = run_command(command.arguments, folder, command.seconds)
            if ran.code != 0:
                raise RuntimeError(f"{name} fails on the original files: {ran}")
            self._expected[name, family] = _in_child(folder, lambda: answers_of(command, folder, ran))
            shutil.rmtree(folder)
        return self._expected[name, family]


def _copy_inputs(command: Command, home: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("in", "outside", "tmp"):
        (folder / name).mkdir(parents=True)
    for name in command.needs(home):
        source, target = home / name, folder / "in" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def _in_child(folder: Path, compute: Callable[[], Any]) -> Any:
    """Compute in a child; the value travels as JSON."""
    logs = folder / "logs/judge"
    logs.mkdir()

    def work() -> None:
        quiet()
        (logs / "value.json").write_text(json.dumps(compute()))

    ran = run_forked(work, folder, logs, _JUDGING)
    if ran.code != 0:
        raise RuntimeError(f"{ran.code} {ran.err[-500:]}")
    return json.loads((logs / "value.json").read_text())


def _judged(case: Case) -> Verdict:
    try:
        return Verdict(**_in_child(case.folder, lambda: asdict(judge(case))))
    except RuntimeError as error:
        return Verdict("wrong", f"the judge failed: {error}")
