"""Run-time properties for the lowest latency whose answers stay as they are.

Property by property: all values are tried beside the best properties so far for a few rounds, and the fastest is measured
again, alone beside them, in full; it is taken only where that interval lies above 1 and its answers are within the tolerance.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lonas_edge.bench import machine
from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.latency import measure_latency
from lonas_edge.bench.measure import Measured, PromptSource, Schedule
from lonas_edge.bench.memory import weight_bytes
from lonas_edge.bench.run import PACKAGES, check_cases
from lonas_edge.bench.session import Plan
from lonas_edge.bench.statistics import MIN_PAIRS, Speedup, speedup
from lonas_edge.bench.timing import OBJECTIVES, Timing
from lonas_edge.bench.worker import Placement, apart
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import Exported, restore_properties, store_properties, untuned
from lonas_edge.ir import LABELS, runtime
from lonas_edge.progress import Progress
from lonas_edge.versions import versions

FIRST_LOOK, FIRST_LOOK_STARTS = Schedule(rounds=3, warmup=1), 1
OTHER_MAY_GROW = 1.10  # the metric that is not the objective
_OTHER = {"tpot": "ttft", "ttft": "tpot"}
BEST = "best so far"


@dataclass(frozen=True)
class TuneOptions:
    """What to search for: the least of an objective, one of `OBJECTIVES`.

    Of TPOT and TTFT the other one may grow by 10 % at most; end to end, both are in it already.

    `tolerance` is the mean KL divergence from the answers by default, in nats, that is allowed; the rest as in `BenchOptions`.
    """

    case: Case
    schedule: Schedule = field(default_factory=Schedule)
    starts: int = 8
    device: str = "CPU"
    threads: int | None = None
    objective: str = "tpot"
    tolerance: float = 0.02


@dataclass(frozen=True)
class Trial:
    """One value of one property, beside the best properties so far. Seconds; `gain` is the objective's speed-up."""

    name: str
    value: str
    ttft: float | None
    tpot: float | None
    gain: Speedup | None
    mean_kl: float | None
    verdict: str

    def shown(self) -> list[str]:
        """As people read it, without the property's name."""
        value = "per channel" if self.value == runtime.PER_CHANNEL else self.value
        times = ["" if seconds is None else f"{1e3 * seconds:.1f}" for seconds in (self.ttft, self.tpot)]
        gain = "" if self.gain is None else f"{self.gain.ratio:.2f}"
        return [value, *times, gain, "" if self.mean_kl is None else f"{self.mean_kl:.4f}", self.verdict]


@dataclass(frozen=True)
class Tuned:
    """What a search gave.

    Attributes:
        objective: tpot or ttft.
        properties: The properties chosen; none where the defaults are best.
        in_ir: Those of them that stock clients find in the IR.
        trials: All that was tried.
        speedups: Of the chosen properties over the defaults, by objective.
        mean_kl: Mean KL divergence of their answers from those by default, in nats.
        conditions: Machine, versions, case.
    """

    objective: str
    properties: dict[str, str]
    in_ir: list[str]
    trials: list[Trial]
    speedups: dict[str, Speedup] = field(default_factory=dict)
    mean_kl: float = 0.0
    conditions: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def speedup_shown(self) -> str:
        """The speed-ups as people read them."""
        told = []
        for metric, gain in self.speedups.items():
            ends = "" if gain.low is None else f" [{gain.low:.2f}, {gain.high:.2f}]"
            told.append(f"{LABELS[metric]} {gain.ratio:.2f} x{ends}")
        few = next((gain.starts for gain in self.speedups.values() if gain.starts < MIN_PAIRS), None)
        if few is not None:
            told[-1] += f" (over the rounds of {few} {'start' if few == 1 else 'starts'}; --starts {MIN_PAIRS} is surer)"
        return f"Speed-up over the defaults: {', '.join(told)}; mean KL of the answers {self.mean_kl:.4f} nats"


def tune(exported: Exported, options: TuneOptions, progress: Progress) -> Tuned:
    """Search run-time properties and store them in the exported directory.

    Args:
        exported: The directory. What an earlier search stored is not looked at, and replaced in the end.
        options: What to search for.
        progress: Called with what is being done.

    Returns:
        What was found.

    Raises:
        LonasEdgeError: If the device is not there or has nothing to tune.
    """
    runtime.check_device(options.device)
    check_cases(exported, [options.case])
    place = machine.placement(options.threads)
    table = runtime.candidates(options.device, place.threads, os.cpu_count() or 1)
    if not table:
        raise LonasEdgeError(f"--device {options.device}: no properties to tune are known for it; CPU and GPU have some.")
    with untuned(exported) as defaults:
        found = _searched(_Search(defaults, options, place, progress), table)
    if found.properties:
        kept = {metric: runtime.Gain(**asdict(gain)) for metric, gain in found.speedups.items()}
        told = (options.device, time.strftime("%Y-%m-%d"), options.objective, found.properties)
        store_properties(exported.folder, runtime.RuntimeProperties(*told, kept, found.mean_kl, found.conditions))
    elif exported.properties:
        restore_properties(exported.folder)
    return found


def _searched(search: "_Search", table: Mapping[str, Sequence[str]]) -> Tuned:
    options = search.options
    best: dict[str, str] = {}
    for name, values in table.items():
        best |= search.property(name, values, best)
    if not best:
        return Tuned(options.objective, {}, [], search.trials)
    final = search.beside({}, {"tuned": best}, options.schedule, "confirming")
    gains = {metric: speedup(*final.paired(BEST, "tuned", options.case, value)) for metric, value in OBJECTIVES.items()}
    machine_told = {**machine.describe(options.device), "threads": search.place.threads}
    conditions = {"machine": machine_told, "case": vars(options.case), "tolerance": options.tolerance}
    conditions["versions"] = versions(PACKAGES)
    inside = sorted(set(best) & set(runtime.IN_IR))
    return Tuned(options.objective, best, inside, search.trials, gains, search.kl(best), conditions)


@dataclass
class _Search:
    exported: Exported
    options: TuneOptions
    place: Placement
    progress: Progress
    trials: list[Trial] = field(default_factory=list)
    _default_answers: Any = None

    def __post_init__(self) -> None:
        self._prompts = PromptSource(self.exported.vocabulary, self.options.schedule.seed)

    def property(self, name: str, values: Sequence[str], best: Mapping[str, str]) -> dict[str, str]:
        """Try the values of one property; returns the one to add to the best, or nothing."""
        tried = {value: {**best, name: value} for value in values}
        look = self.beside(best, tried, FIRST_LOOK, f"trying {name}")
        ranked = []
        for value in values:
            reason = look.failures.get((value, self.options.case))
            if reason:
                self._note(name, value, look, None, None, f"refused: {reason}")
                continue
            gain = self._gain(look, value, self.options.objective)
            if gain.ratio > 1:
                ranked.append((gain.ratio, value))
            else:
                self._note(name, value, look, gain, None, "not faster")
        taken: dict[str, str] = {}
        for _, value in sorted(ranked, reverse=True):
            if taken:
                self._note(name, value, look, self._gain(look, value, self.options.objective), None, "another value is faster")
            elif self._confirmed(name, value, best, tried[value]):
                taken = {name: value}
        return taken

    def _confirmed(self, name: str, value: str, best: Mapping[str, str], properties: Mapping[str, str]) -> bool:
        full = self.beside(best, {value: properties}, self.options.schedule, f"confirming {name}={value}")
        if (value, self.options.case) in full.failures:
            self._note(name, value, full, None, None, "failed")
            return False
        gain = self._gain(full, value, self.options.objective)
        other = _OTHER.get(self.options.objective)
        kl = self.kl(properties)
        if gain.low is None or gain.low <= 1:
            verdict = "not surely faster"
        elif other and self._gain(full, value, other).ratio < 1 / OTHER_MAY_GROW:
            verdict = "the other metric grows too much"
        elif kl > self.options.tolerance:
            verdict = "changes the answers"
        else:
            verdict = "taken"
        self._note(name, value, full, gain, kl, verdict)
        return verdict == "taken"

    def _gain(self, measured: Measured, value: str, metric: str) -> Speedup:
        return speedup(*measured.paired(BEST, value, self.options.case, OBJECTIVES[metric]))

    def _note(self, name: str, value: str, measured: Measured, gain: Speedup | None, kl: float | None, verdict: str) -> None:
        timings = measured.timings(value, self.options.case)
        self.trials.append(Trial(name, value, _median(timings, "ttft"), _median(timings, "tpot"), gain, kl, verdict))

    def beside(
        self, best: Mapping[str, str], tried: Mapping[str, Mapping[str, str]], schedule: Schedule, what: str
    ) -> Measured:
        """Measure properties beside the best so far, all together or in pairs, as memory allows."""
        size = weight_bytes(self.exported.folder)
        arms = [
            Arm(name, "ir", self.exported.folder, self.options.device, properties=properties, bytes_estimate=size)
            for name, properties in {BEST: best, **tried}.items()
        ]

        def report(step: str, _done: float | None) -> None:
            self.progress(f"{what}: {step}", None)

        starts = FIRST_LOOK_STARTS if schedule is FIRST_LOOK else self.options.starts
        config, case = self.exported.config, self.options.case
        whole = Measured()
        for session in measure_latency(arms, Plan(config, [case], schedule, starts, self.place, self._prompts, report)):
            whole.add(session.measured)
        if whole.interrupted:
            raise KeyboardInterrupt
        return whole

    def kl(self, properties: Mapping[str, str]) -> float:
        """Mean KL divergence of the answers under these properties from those by default, in nats."""
        import torch

        from lonas_edge.data.calibration import prompts
        from lonas_edge.network.divergence import compare
        from lonas_edge.network.tokenizer import load_tokenizer

        self.progress("Comparing answers", None)
        ids = prompts(load_tokenizer(self.exported.folder), self.exported.vocabulary).tolist()

        def answers(properties: Mapping[str, str]) -> torch.Tensor:
            return torch.from_numpy(apart(runtime.answers, self.exported.folder, self.options.device, dict(properties), ids))

        if self._default_answers is None:
            self._default_answers = answers({})
        return compare(self._default_answers, answers(properties)).mean_kl


def _median(timings: Sequence[Timing], metric: str) -> float | None:
    return statistics.median(OBJECTIVES[metric](timing) for timing in timings) if timings else None
