"""Measure each variant once per round, in a random order, on prompts that never repeat."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

from lonas_edge.bench.variants import Case, Facts, Timing
from lonas_edge.bench.worker import VariantFailedError, VariantProcess
from lonas_edge.progress import Progress, silent

MOST_STARTS, ROUNDS_PER_START = 8, 3
Failures = dict[tuple[str, Case], str]  # error messages by variant and case


@dataclass(frozen=True)
class Sample:
    """One measured generation; `round` and `start` (of the process) count from 0 over the measurement."""

    variant: str
    case: Case
    round: int
    timing: Timing
    start: int = 0


@dataclass
class Measurement:
    """Result of a measurement."""

    samples: list[Sample] = field(default_factory=list)  # in order
    failures: Failures = field(default_factory=dict)
    interrupted: bool = False
    groups: list[list[str]] = field(default_factory=list)  # names of the variants that were loaded together
    facts: dict[str, Facts] = field(default_factory=dict)
    loads: list[dict[str, float]] = field(default_factory=list)  # shares of the processor that others used, for each start

    def timings(self, variant: str, case: Case) -> list[Timing]:
        """Return the generations of one variant in one case, in the order of rounds."""
        return [sample.timing for sample in self.samples if (sample.variant, sample.case) == (variant, case)]

    def paired(
        self, variant: str, baseline: str, case: Case, value: Callable[[Timing], float]
    ) -> tuple[list[float], list[float], list[int]]:
        """Return the values of both variants in the rounds that both completed, and the start of each round."""
        values: dict[str, dict[int, float]] = {variant: {}, baseline: {}}
        starts: dict[int, int] = {}
        for sample in self.samples:
            if sample.case == case and sample.variant in values:
                values[sample.variant][sample.round] = value(sample.timing)
                starts[sample.round] = sample.start
        both = sorted(values[variant].keys() & values[baseline].keys())
        return [values[variant][r] for r in both], [values[baseline][r] for r in both], [starts[r] for r in both]

    def add(self, part: "Measurement") -> None:
        """Append a later measurement; its rounds and starts get new numbers, so that only its own rounds are paired."""
        rounds, starts = (1 + max((getattr(s, name) for s in self.samples), default=-1) for name in ("round", "start"))
        self.samples += [replace(s, round=s.round + rounds, start=s.start + starts) for s in part.samples]
        self.failures |= part.failures
        self.interrupted |= part.interrupted
        self.groups += part.groups
        self.facts = part.facts | self.facts
        self.loads += part.loads


class PromptSource:
    """Random token ids; no two prompts share a prefix, so that a prefix cache cannot help."""

    def __init__(self, vocabulary: int, seed: int):
        """Draw ids below `vocabulary`."""
        self._vocabulary, self._random, self._count = vocabulary, random.Random(seed), 0

    def next(self, case: Case) -> list[list[int]]:
        """Return the prompt of the next generation, [1, prompt_len]."""
        return [self._prompt(case.prompt_len)]

    def _prompt(self, length: int) -> list[int]:
        ids = [self._random.randrange(self._vocabulary) for _ in range(length)]
        prefix = [self._count % self._vocabulary, self._count // self._vocabulary % self._vocabulary]
        self._count += 1
        return (prefix + ids[2:])[:length]


class DataPrompts(PromptSource):
    """Prompts of a data file, one after the other."""

    def __init__(self, prompts: Sequence[Sequence[int]]):
        """Take prompts as token ids."""
        self._prompts = cycle(list(prompt) for prompt in prompts)

    def next(self, case: Case) -> list[list[int]]:
        """Return the next prompt."""
        return [next(self._prompts)]


@dataclass(frozen=True)
class Schedule:
    """Number of runs, and their order."""

    rounds: int = 24  # measured generations of every variant in each case, over all starts
    starts: int = 8  # how often the processes of all variants are started; the rounds are divided among the starts
    warmup: int = 2  # generations of every variant in each case before them, at every start
    seed: int = 0  # of the order and of the prompts

    @classmethod
    def of(cls, rounds: int) -> "Schedule":
        """Divide rounds among as many process starts as give each enough rounds."""
        return cls(rounds, max(1, min(MOST_STARTS, rounds // ROUNDS_PER_START)))

    def split(self) -> list["Schedule"]:
        """Divide the rounds among the starts, at most one start per round; each part has its own seed."""
        starts = min(self.starts, self.rounds)
        share, extra = divmod(self.rounds, starts)
        return [Schedule(share + (start < extra), 1, self.warmup, starts * self.seed + start) for start in range(starts)]

    def order(self, variants: Sequence[str], case: Case, number: int) -> list[str]:
        """Return a random order of the variants for one round; it does not depend on the order of `variants`."""
        order = sorted(variants)
        random.Random(f"{self.seed}/{case}/{number}").shuffle(order)
        return order


def measure(
    variants: Mapping[str, VariantProcess],
    cases: Sequence[Case],
    schedule: Schedule,
    prompts: PromptSource,
    report: Progress = silent,
    failures: Failures | None = None,
) -> Measurement:
    """Measure loaded variants in interleaved rounds; return the samples until the end or Ctrl-C.

    All variants get the same prompts in a round. A variant that fails is skipped in the rest of its case, or in all cases
    if its process died. `failures` has variants to skip in a case, and why.
    """
    result = Measurement(failures=dict(failures or {}))
    per_case = schedule.warmup + schedule.rounds
    dead: dict[str, str] = {}
    try:
        for index, case in enumerate(cases):
            result.failures |= {(name, case): why for name, why in dead.items() if (name, case) not in result.failures}
            for number in range(per_case):
                active = [name for name in schedule.order(list(variants), case, number) if (name, case) not in result.failures]
                if not active:
                    break
                warming = number < schedule.warmup
                batch = prompts.next(case)
                step = "warm-up" if warming else f"round {number - schedule.warmup + 1} of {schedule.rounds}"
                for name in active:
                    report(f"{case}: {name}, {step}", (index * per_case + number) / (len(cases) * per_case))
                    try:
                        timing = variants[name].run(batch, case.new_tokens)
                    except VariantFailedError as error:
                        result.failures[name, case] = str(error)
                        if not variants[name].alive:
                            dead[name] = str(error)
                        continue
                    if not warming:
                        result.samples.append(Sample(name, case, number - schedule.warmup, timing))
    except KeyboardInterrupt:
        result.interrupted = True
    return result
