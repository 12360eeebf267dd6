"""Cases: case K of seed S is one command with one damaged file, always the same one."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from damage import Damaged
from expected import Case, answers_of
from judge import Verdict, judge, quiet
from mutators import mutate
from runner import Ran, run_command, run_forked, snapshot
from world import COMMANDS, Command, files_of, others_of

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
    damage: str
    outcome: str
    why: str
    seconds: float

    def shown(self) -> str:
        """In a line."""
        return (
            f"{self.outcome}: {self.line} | {self.file}: {self.damage} | {' '.join(self.why.split())[:300]} | "
            f"{self.family}, seed {self.seed} case {self.case}"
        )


class Suite:
    """Runs cases against a world of undamaged files."""

    def __init__(self, world: Path, work: Path, names: Sequence[str] = tuple(COMMANDS)):
        """Set up.

        Args:
            world: What `make_world` wrote.
            work: A directory for the cases.
            names: The commands that are drawn.
        """
        self.world, self.work = world, work
        self.commands = {name: COMMANDS[name] for name in names}
        self._expected: dict[tuple[str, str], Any] = {}

    def run(self, seed: int, number: int, keep: bool = False) -> tuple[Result, Ran]:
        """Run a case.

        Args:
            seed: The seed.
            number: The case's number.
            keep: Whether its directory stays.

        Returns:
            The result, and how the command ended.
        """
        rng = random.Random(f"{seed}:{number}")
        (name,) = rng.choices(list(self.commands), [command.weight for command in self.commands.values()])
        command = self.commands[name]
        family = rng.choice(command.families) if rng.random() < 0.3 else command.families[0]
        home, case = self.world / family, self.work / f"{seed}-{number}"
        expected = self._expected_of(name, family)
        file = rng.choice(files_of(command, home))
        self._lay_out(command, home, case)
        place = case / file if file.startswith("cache/") else case / "in" / file
        told = mutate(Damaged(place, case / "outside", others_of(self.world, file), rng))
        before = snapshot(case)
        ran = run_command(command.arguments, case, command.seconds)
        judged = Case(command, file, told, case, home, ran, before, snapshot(case), expected)
        verdict = self._judged(judged)
        line = " ".join(["lonas-edge", *command.arguments])
        result = Result(seed, number, name, family, line, file, told, verdict.outcome, verdict.why, round(ran.seconds, 2))
        if not keep:
            shutil.rmtree(case, ignore_errors=True)
        return result, ran

    def _lay_out(self, command: Command, home: Path, case: Path) -> None:
        shutil.rmtree(case, ignore_errors=True)
        for name in ("in", "outside", "tmp"):
            (case / name).mkdir(parents=True)
        for name in command.needs(home):
            source, target = home / name, case / "in" / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        if (home / "cache").exists() and command.arguments[0] == "eval":
            shutil.copytree(home / "cache", case / "cache")

    def _expected_of(self, name: str, family: str) -> Any:
        """What the command answers on the undamaged files, asked once."""
        if (name, family) not in self._expected:
            command, case = self.commands[name], self.work / f"undamaged-{name}-{family}"
            self._lay_out(command, self.world / family, case)
            ran = run_command(command.arguments, case, command.seconds)
            if ran.code != 0:
                raise RuntimeError(f"{name} fails on undamaged files: {ran}")

            def answer() -> None:
                quiet()
                (case / "answers.json").write_text(json.dumps(answers_of(command, case, ran)))

            answered = run_forked(answer, case, case / "logs", _JUDGING)
            if answered.code != 0:
                raise RuntimeError(f"{name}: {answered}")
            self._expected[name, family] = json.loads((case / "answers.json").read_text())
            shutil.rmtree(case)
        return self._expected[name, family]

    def _judged(self, case: Case) -> Verdict:
        path = case.folder / "logs/verdict.json"

        def work() -> None:
            quiet()
            path.write_text(json.dumps(asdict(judge(case))))

        (case.folder / "logs/judge").mkdir()
        ended = run_forked(work, case.folder, case.folder / "logs/judge", _JUDGING)
        if ended.code != 0:
            return Verdict("wrong", f"the judge failed: {ended.code} {ended.err[-500:]}")
        return replace(Verdict(**json.loads(path.read_text())))
