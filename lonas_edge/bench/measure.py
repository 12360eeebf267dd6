"""The measurement: every arm once a round, in an order drawn anew for each round, on prompts that are never repeated."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from lonas_edge.bench.arms import Case
from lonas_edge.bench.timing import Timing
from lonas_edge.bench.worker import ArmFailedError
from lonas_edge.progress import Progress, silent

Prompts = list[list[int]]


class Runs(Protocol):
    """What `measure` needs of an arm's process."""

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        """Generate once."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it can go on after a failure."""
        ...


@dataclass(frozen=True)
class Sample:
    """One generation that counts; `round` and `start` (of the arm's process) count from 0 over the whole measurement."""

    arm: str
    case: Case
    round: int
    timing: Timing
    start: int = 0


@dataclass
class Measured:
    """What a measurement gave.

    Attributes:
        samples: Every generation that counts, in the order taken.
        failures: What went wrong, by arm and case.
        interrupted: Whether Ctrl-C ended it early.
    """

    samples: list[Sample] = field(default_factory=list)
    failures: dict[tuple[str, Case], str] = field(default_factory=dict)
    interrupted: bool = False

    def paired(
        self, arm: str, other: str, case: Case, value: Callable[[Timing], float]
    ) -> tuple[list[float], list[float], list[int]]:
        """Values of two arms in the rounds that both completed, in the order of rounds, and the start of each round."""
        of: dict[str, dict[int, float]] = {arm: {}, other: {}}
        starts: dict[int, int] = {}
        for sample in self.samples:
            if sample.case == case and sample.arm in of:
                of[sample.arm][sample.round] = value(sample.timing)
                starts[sample.round] = sample.start
        both = sorted(of[arm].keys() & of[other].keys())
        return [of[arm][r] for r in both], [of[other][r] for r in both], [starts[r] for r in both]

    def add(self, part: "Measured") -> None:
        """Add a measurement made after this one; its rounds and starts are numbered on, so that only its own are paired."""
        rounds, starts = (1 + max((getattr(s, name) for s in self.samples), default=-1) for name in ("round", "start"))
        self.samples += [replace(s, round=s.round + rounds, start=s.start + starts) for s in part.samples]
        self.failures |= part.failures
        self.interrupted |= part.interrupted

    def timings(self, arm: str, case: Case) -> list[Timing]:
        """Every generation of one arm that counts, in the order of rounds."""
        return [sample.timing for sample in self.samples if (sample.arm, sample.case) == (arm, case)]


class Prompter(Protocol):
    """What gives the prompts."""

    def next(self, case: Case) -> Prompts:
        """The prompts of the next generation, token ids [batch_size, tokens]."""
        ...


class PromptSource(Prompter):
    """Prompts of random token ids, no two of which begin alike, so that no cache of prefixes can help."""

    def __init__(self, vocabulary: int, seed: int):
        """Set up.

        Args:
            vocabulary: Ids below this one are drawn.
            seed: Seed of the draw.
        """
        self._vocabulary, self._draw, self._made = vocabulary, random.Random(seed), 0

    def next(self, case: Case) -> Prompts:
        """The prompts of the next generation.

        Args:
            case: Says how long and how many.

        Returns:
            Token ids [batch_size, prompt_len].
        """
        return [self._prompt(case.prompt_len) for _ in range(case.batch_size)]

    def _prompt(self, length: int) -> list[int]:
        ids = [self._draw.randrange(self._vocabulary) for _ in range(length)]
        start = [self._made % self._vocabulary, self._made // self._vocabulary % self._vocabulary]
        self._made += 1
        return (start + ids[2:])[:length]


@dataclass(frozen=True)
class Schedule:
    """How often, and in which order.

    Attributes:
        rounds: Generations of every arm that count, for each case.
        warmup: Generations of every arm before them, for each case.
        seed: Seed of the order.
    """

    rounds: int = 24
    warmup: int = 2
    seed: int = 0

    def split(self, starts: int) -> list["Schedule"]:
        """The rounds divided among so many starts, or as many as there are rounds; each has its own orders."""
        starts = min(starts, self.rounds)
        share, more = divmod(self.rounds, starts)
        return [replace(self, rounds=share + (start < more), seed=starts * self.seed + start) for start in range(starts)]

    def order(self, arms: Sequence[str], case: Case, number: int) -> list[str]:
        """The order of the arms in one round: a permutation drawn for it, whatever order they were named in."""
        order = sorted(arms)
        random.Random(f"{self.seed}/{case}/{number}").shuffle(order)
        return order


def measure(
    arms: Mapping[str, Runs],
    cases: Sequence[Case],
    schedule: Schedule,
    prompts: Prompter,
    report: Progress = silent,
    failures: Mapping[tuple[str, Case], str] | None = None,
    before_round: Callable[[], None] = lambda: None,
) -> Measured:
    """Measure arms side by side.

    Args:
        arms: Loaded arms by name.
        cases: The settings, one after the other.
        schedule: How often, in which order.
        prompts: Gives the prompts; all arms have the same in a round.
        report: Called before each generation.
        failures: Arms that cannot do a case, and why; they are left out of it.
        before_round: Called before each round that counts.

    Returns:
        What was measured until the end, or until Ctrl-C. An arm that fails is left out of its case from then on, and of all
        others when its process died.
    """
    found = Measured(failures=dict(failures or {}))
    total = len(cases) * (schedule.warmup + schedule.rounds)
    dead: dict[str, str] = {}
    try:
        for index, case in enumerate(cases):
            found.failures.update({(name, case): why for name, why in dead.items() if (name, case) not in found.failures})
            if all((name, case) in found.failures for name in arms):
                continue
            for number in range(schedule.warmup + schedule.rounds):
                if number >= schedule.warmup:
                    before_round()
                given = prompts.next(case)
                done = (index * (schedule.warmup + schedule.rounds) + number) / total
                for name in schedule.order(list(arms), case, number):
                    if (name, case) in found.failures:
                        continue
                    warming = number < schedule.warmup
                    counted = "warm-up" if warming else f"round {number - schedule.warmup + 1} of {schedule.rounds}"
                    report(f"{case}: {name}, {counted}", done)
                    try:
                        timing = arms[name].run(given, case.new_tokens)
                    except ArmFailedError as error:
                        found.failures[name, case] = str(error)
                        if not arms[name].alive:
                            dead[name] = str(error)
                        continue
                    if not warming:
                        found.samples.append(Sample(name, case, number - schedule.warmup, timing))
    except KeyboardInterrupt:
        found.interrupted = True
    return found
