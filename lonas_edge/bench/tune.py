"""Search for the OpenVINO runtime properties of the lowest latency whose outputs stay the same.

Properties are tried one by one. A short measurement compares all values of a property with the best properties so far. The
fastest value is then measured alone against them in full. It is chosen if it is significantly faster and its outputs stay
within the tolerance.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lonas_edge.bench import machine
from lonas_edge.bench.latency import Plan, measure_latency
from lonas_edge.bench.measure import ROUNDS_PER_START, Measurement, PromptSource, Schedule
from lonas_edge.bench.memory import weight_bytes
from lonas_edge.bench.options import TuneOptions
from lonas_edge.bench.run import PACKAGES, check_cases
from lonas_edge.bench.statistics import MIN_PAIRS, paired_ratio
from lonas_edge.bench.tables import show_ratio
from lonas_edge.bench.timing import OBJECTIVES, Timing
from lonas_edge.bench.variants import Variant
from lonas_edge.bench.worker import Placement, apart
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import Exported, restore_properties, store_properties, untuned
from lonas_edge.ir import LABELS, runtime
from lonas_edge.ir.runtime import Ratio
from lonas_edge.progress import Progress
from lonas_edge.versions import versions

SHORT = Schedule(rounds=3, starts=1, warmup=1)
MAX_GROWTH = 1.10  # of the metric of `_OTHER`
MAX_KL = 0.02  # mean KL divergence from the outputs with default properties, in nats
_OTHER = {"tpot": "ttft", "ttft": "tpot"}
BEST = "best so far"
CHOSEN = "chosen"


@dataclass(frozen=True)
class Trial:
    """A value of a property. Times are in seconds; `ratio` is its objective over that of the best properties so far."""

    name: str
    value: str
    ttft: float | None
    tpot: float | None
    ratio: Ratio | None
    mean_kl: float | None
    verdict: str

    def cells(self) -> list[str]:
        """Return the cells of a table, without the property's name."""
        value = "per channel" if self.value == runtime.PER_CHANNEL else self.value
        times = ["" if seconds is None else f"{1e3 * seconds:.1f}" for seconds in (self.ttft, self.tpot)]
        ratio = "" if self.ratio is None else f"{self.ratio.value:.2f}"
        return [value, *times, ratio, "" if self.mean_kl is None else f"{self.mean_kl:.4f}", self.verdict]


@dataclass(frozen=True)
class Tuned:
    """Result of a search.

    Attributes:
        objective: Key of `OBJECTIVES`.
        properties: The chosen properties; empty if the defaults are best.
        in_ir: Those of them that stock clients read from the IR.
        ratios: Latency with the chosen properties over that with the defaults, by objective.
        mean_kl: Mean KL divergence from the outputs with the defaults, in nats.
    """

    objective: str
    properties: dict[str, str]
    in_ir: list[str]
    trials: list[Trial]
    ratios: dict[str, Ratio] = field(default_factory=dict)
    mean_kl: float = 0.0
    conditions: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)

    def summary(self) -> str:
        """Return the ratios and the KL divergence in one line."""
        ratios = ", ".join(f"{LABELS[metric]} {show_ratio(ratio)}" for metric, ratio in self.ratios.items())
        starts = min(ratio.starts for ratio in self.ratios.values())
        note = f" (interval over rounds; use --rounds {MIN_PAIRS * ROUNDS_PER_START} or more)" if starts < MIN_PAIRS else ""
        return f"vs defaults: {ratios}{note}; mean KL {self.mean_kl:.4f} nats"


def tune(exported: Exported, options: TuneOptions, progress: Progress) -> Tuned:
    """Search runtime properties and store them in the exported directory, in place of those of an earlier search."""
    runtime.check_device(options.device)
    check_cases(exported, [options.case])
    placement = machine.placement(options.threads)
    candidates = runtime.candidates(options.device, placement.threads, os.cpu_count() or 1)
    if not candidates:
        raise LonasEdgeError(f"--device {options.device}: has no properties to tune; --tune supports CPU and GPU.")
    with untuned(exported) as defaults:
        tuned = _search(_Search(defaults, options, placement, progress), candidates)
    if tuned.properties:
        record = (options.device, time.strftime("%Y-%m-%d"), options.objective, tuned.properties)
        store_properties(exported.folder, runtime.RuntimeProperties(*record, tuned.ratios, tuned.mean_kl, tuned.conditions))
    elif exported.properties:
        restore_properties(exported.folder)
    return tuned


def _search(search: "_Search", candidates: Mapping[str, Sequence[str]]) -> Tuned:
    options = search.options
    best: dict[str, str] = {}
    for name, values in candidates.items():
        best |= search.choose(name, values, best)
    if not best:
        return Tuned(options.objective, {}, [], search.trials)
    final = search.measure({}, {"tuned": best}, options.schedule, "confirming")
    if reason := final.failures.get(("tuned", options.case)):
        raise LonasEdgeError(f"{search.exported.folder}: the properties found do not work together: {best}: {reason}")
    conditions = {
        "machine": {**machine.describe(options.device), "threads": search.placement.threads},
        "case": vars(options.case),
        "tolerance": MAX_KL,
        "versions": versions(PACKAGES),
    }
    return Tuned(
        options.objective,
        best,
        sorted(set(best) & set(runtime.IN_IR)),
        search.trials,
        {metric: search.ratio(final, "tuned", metric) for metric in OBJECTIVES},
        search.kl(best),
        conditions,
    )


@dataclass
class _Search:
    exported: Exported
    options: TuneOptions
    placement: Placement
    progress: Progress
    trials: list[Trial] = field(default_factory=list)
    _default_logits: Any = None

    def __post_init__(self) -> None:
        self._prompts = PromptSource(self.exported.vocabulary, self.options.schedule.seed)

    def choose(self, name: str, values: Sequence[str], best: Mapping[str, str]) -> dict[str, str]:
        """Try the values of one property; return the one to add to the best properties, or nothing."""
        tried = {value: {**best, name: value} for value in values}
        measurement = self.measure(best, tried, SHORT, f"trying {name}")
        ratios: dict[str, Ratio] = {}
        for value in values:
            reason = measurement.failures.get((value, self.options.case))
            if reason:
                self._note(name, value, measurement, None, None, f"refused: {reason}")
                continue
            ratio = self.ratio(measurement, value, self.options.objective)
            if ratio.value < 1:
                ratios[value] = ratio
            else:
                self._note(name, value, measurement, ratio, None, "not faster")
        chosen: dict[str, str] = {}
        for value in sorted(ratios, key=lambda value: ratios[value].value):
            if chosen:
                self._note(name, value, measurement, ratios[value], None, "another value is faster")
            elif self._confirm(name, value, best, tried[value]):
                chosen = {name: value}
        return chosen

    def _confirm(self, name: str, value: str, best: Mapping[str, str], properties: Mapping[str, str]) -> bool:
        full = self.measure(best, {value: properties}, self.options.schedule, f"confirming {name}={value}")
        if (value, self.options.case) in full.failures:
            self._note(name, value, full, None, None, "failed")
            return False
        ratio = self.ratio(full, value, self.options.objective)
        other = _OTHER.get(self.options.objective)
        kl = self.kl(properties)
        if ratio.high is None or ratio.high >= 1:
            verdict = "not significantly faster"
        elif other and self.ratio(full, value, other).value > MAX_GROWTH:
            verdict = f"{LABELS[other]} grows by more than {MAX_GROWTH - 1:.0%}"
        elif not kl <= MAX_KL:  # also of NaN
            verdict = f"KL above {MAX_KL}"
        else:
            verdict = CHOSEN
        self._note(name, value, full, ratio, kl, verdict)
        return verdict == CHOSEN

    def ratio(self, measurement: Measurement, value: str, metric: str) -> Ratio:
        """Return a metric's ratio of a tried value to the best properties so far."""
        return paired_ratio(*measurement.paired(value, BEST, self.options.case, OBJECTIVES[metric]))

    def _note(
        self, name: str, value: str, measurement: Measurement, ratio: Ratio | None, kl: float | None, verdict: str
    ) -> None:
        timings = measurement.timings(value, self.options.case)
        self.trials.append(Trial(name, value, _median(timings, "ttft"), _median(timings, "tpot"), ratio, kl, verdict))

    def measure(
        self, best: Mapping[str, str], tried: Mapping[str, Mapping[str, str]], schedule: Schedule, step: str
    ) -> Measurement:
        """Measure properties against the best so far."""
        folder, case = self.exported.folder, self.options.case
        size = weight_bytes(folder)
        variants = [
            Variant(name, "ir", folder, self.options.device, properties=properties, bytes_estimate=size)
            for name, properties in {BEST: best, **tried}.items()
        ]

        def progress(what: str, _done: float | None) -> None:
            self.progress(f"{step}: {what}", None)

        plan = Plan(self.exported.config, [case], schedule, self.placement, self._prompts, progress)
        measurement = measure_latency(variants, plan)
        if measurement.interrupted:
            raise KeyboardInterrupt
        if reason := measurement.failures.get((BEST, case)):
            raise LonasEdgeError(
                f"{folder}: the model does not run with {best or 'the default properties'}: {reason}. There is nothing to "
                "compare other properties with; try another number of --threads or another --device."
            )
        return measurement

    def kl(self, properties: Mapping[str, str]) -> float:
        """Return the mean KL divergence of the outputs with these properties from those with the defaults, in nats."""
        import torch

        from lonas_edge.data.calibration import prompts
        from lonas_edge.network.divergence import compare
        from lonas_edge.network.tokenizer import load_tokenizer

        self.progress("Comparing outputs", None)
        ids = prompts(load_tokenizer(self.exported.folder), self.exported.vocabulary).tolist()

        def logits(properties: Mapping[str, str]) -> torch.Tensor:
            return torch.from_numpy(apart(runtime.answers, self.exported.folder, self.options.device, dict(properties), ids))

        if self._default_logits is None:
            self._default_logits = logits({})
        return compare(self._default_logits, logits(properties)).distance


def _median(timings: Sequence[Timing], metric: str) -> float | None:
    return statistics.median(OBJECTIVES[metric](timing) for timing in timings) if timings else None
