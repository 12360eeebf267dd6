"""Run-time properties for the lowest latency whose answers stay as they are.

Property by property: all values are tried beside the best properties so far for a few rounds, and the fastest is measured
again, alone beside them, in full; it is taken only where that interval lies above 1 and its answers are within the tolerance.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from lonas_edge.bench import machine
from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.measure import Measured, Progress, PromptSource, Schedule
from lonas_edge.bench.run import PACKAGES, BenchOptions, check_cases, sessions
from lonas_edge.bench.session import run_session
from lonas_edge.bench.statistics import MIN_PAIRS, Speedup, speedup
from lonas_edge.bench.timing import Timing
from lonas_edge.bench.worker import Placement
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import Exported, open_exported, restore_properties, store_properties
from lonas_edge.ir import RUNTIME, WEIGHTS, runtime
from lonas_edge.versions import versions

FIRST_LOOK, FIRST_LOOK_STARTS = Schedule(rounds=3, warmup=1), 1
OTHER_MAY_GROW = 1.10  # the metric that is not the objective
BEST = "best so far"


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
        speedups: Of the chosen properties over the defaults, for tpot and ttft.
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
            told.append(f"{metric.upper()} {gain.ratio:.2f} x{ends}")
        few = next((gain.starts for gain in self.speedups.values() if gain.starts < MIN_PAIRS), None)
        if few is not None:
            told[-1] += f" (over the rounds of {few} {'start' if few == 1 else 'starts'}; --starts {MIN_PAIRS} is surer)"
        return f"Speed-up over the defaults: {', '.join(told)}; mean KL of the answers {self.mean_kl:.4f} nats"


METRICS = {"tpot": lambda timing: timing.tpot, "ttft": lambda timing: timing.ttft}


def tune(exported: Exported, options: BenchOptions, objective: str, tolerance: float, progress: Progress) -> Tuned:
    """Search run-time properties and store them in the exported directory.

    Args:
        exported: The directory. What an earlier search stored is taken back first.
        options: Device, threads, seed, rounds and the (first) case are used.
        objective: tpot or ttft; the other may grow by 10 %.
        tolerance: Mean KL divergence from the answers by default, in nats, that is allowed.
        progress: Called with what is being done.

    Returns:
        What was found.

    Raises:
        LonasEdgeError: If the device is not there or has nothing to tune.
    """
    runtime.check_device(options.device)
    check_cases(exported, options.cases[:1])
    place = machine.placement(options.threads)
    table = runtime.candidates(options.device, place.threads, os.cpu_count() or 1)
    if not table:
        raise LonasEdgeError(f"--device {options.device}: no properties to tune are known for it; CPU and GPU have some.")
    if (exported.folder / RUNTIME).exists():
        restore_properties(exported.folder)
        exported = open_exported(exported.folder)
    search = _Search(exported, options, objective, tolerance, place, progress)
    best: dict[str, str] = {}
    for name, values in table.items():
        best |= search.property(name, values, best)
    if not best:
        return Tuned(objective, {}, [], search.trials)
    final = search.beside({}, {"tuned": best}, options.schedule, "confirming")
    gains = {metric: speedup(*final.paired(BEST, "tuned", search.case, value)) for metric, value in METRICS.items()}
    machine_told = {**machine.describe(options.device), "threads": place.threads}
    conditions = {"machine": machine_told, "case": vars(search.case), "versions": versions(PACKAGES), "tolerance": tolerance}
    inside = sorted(set(best) & set(runtime.IN_IR))
    found = Tuned(objective, best, inside, search.trials, gains, search.kl(best), conditions)
    kept = {metric: runtime.Gain(**asdict(gain)) for metric, gain in gains.items()}
    date = time.strftime("%Y-%m-%d")
    chosen = runtime.RuntimeProperties(options.device, date, objective, best, kept, found.mean_kl, conditions)
    store_properties(exported.folder, chosen)
    return found


@dataclass
class _Search:
    exported: Exported
    options: BenchOptions
    objective: str
    tolerance: float
    place: Placement
    progress: Progress
    trials: list[Trial] = field(default_factory=list)
    _default_answers: Any = None

    def __post_init__(self) -> None:
        self._prompts = PromptSource(self.exported.vocabulary, self.options.schedule.seed)

    @property
    def case(self) -> Case:
        """The case that is measured."""
        return self.options.cases[0]

    def property(self, name: str, values: Sequence[str], best: Mapping[str, str]) -> dict[str, str]:
        """Try the values of one property; returns the one to add to the best, or nothing."""
        tried = {value: {**best, name: value} for value in values}
        look = self.beside(best, tried, FIRST_LOOK, f"trying {name}")
        ranked = []
        for value in values:
            reason = look.failures.get((value, self.case))
            if reason:
                self._note(name, value, look, None, None, f"refused: {reason}")
                continue
            gain = self._gain(look, value, self.objective)
            if gain.ratio > 1:
                ranked.append((gain.ratio, value))
            else:
                self._note(name, value, look, gain, None, "not faster")
        taken: dict[str, str] = {}
        for _, value in sorted(ranked, reverse=True):
            if taken:
                self._note(name, value, look, self._gain(look, value, self.objective), None, "another value is faster")
            elif self._confirmed(name, value, best, tried[value]):
                taken = {name: value}
        return taken

    def _confirmed(self, name: str, value: str, best: Mapping[str, str], properties: Mapping[str, str]) -> bool:
        full = self.beside(best, {value: properties}, self.options.schedule, f"confirming {name}={value}")
        if (value, self.case) in full.failures:
            self._note(name, value, full, None, None, "failed")
            return False
        gain = self._gain(full, value, self.objective)
        other = self._gain(full, value, "ttft" if self.objective == "tpot" else "tpot")
        kl = self.kl(properties)
        if gain.low is None or gain.low <= 1:
            verdict = "not surely faster"
        elif other.ratio < 1 / OTHER_MAY_GROW:
            verdict = "the other metric grows too much"
        elif kl > self.tolerance:
            verdict = "changes the answers"
        else:
            verdict = "taken"
        self._note(name, value, full, gain, kl, verdict)
        return verdict == "taken"

    def _gain(self, measured: Measured, value: str, metric: str) -> Speedup:
        return speedup(*measured.paired(BEST, value, self.case, METRICS[metric]))

    def _note(self, name: str, value: str, measured: Measured, gain: Speedup | None, kl: float | None, verdict: str) -> None:
        timings = measured.timings(value, self.case)
        self.trials.append(Trial(name, value, _median(timings, "ttft"), _median(timings, "tpot"), gain, kl, verdict))

    def beside(
        self, best: Mapping[str, str], tried: Mapping[str, Mapping[str, str]], schedule: Schedule, what: str
    ) -> Measured:
        """Measure properties beside the best so far, all together or in pairs, as memory allows."""
        size = (self.exported.folder / WEIGHTS).stat().st_size
        arms = [
            Arm(name, "ir", self.exported.folder, self.options.device, properties=properties, bytes_estimate=size)
            for name, properties in {BEST: best, **tried}.items()
        ]
        whole = Measured()
        for group in sessions(arms, psutil.virtual_memory().available):

            def report(step: str, _done: float | None) -> None:
                self.progress(f"{what}: {step}", None)

            starts = FIRST_LOOK_STARTS if schedule is FIRST_LOOK else self.options.starts
            config = self.exported.config
            whole.add(run_session(group, config, [self.case], schedule, starts, self.place, self._prompts, report).measured)
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
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # its memory goes with it
            arguments = (self.exported.folder, self.options.device)
            if self._default_answers is None:
                self._default_answers = torch.from_numpy(pool.submit(runtime.answers, *arguments, {}, ids).result())
            found = torch.from_numpy(pool.submit(runtime.answers, *arguments, dict(properties), ids).result())
        return compare(self._default_answers, found).mean_kl


def _median(timings: Sequence[Timing], metric: str) -> float | None:
    from statistics import median

    return median(METRICS[metric](timing) for timing in timings) if timings else None
