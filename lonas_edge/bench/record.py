"""The record of a benchmark: latencies, ratios and warnings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lonas_edge.bench.measure import ROUNDS_PER_START, Measurement, Sample
from lonas_edge.bench.runners import RUNNERS
from lonas_edge.bench.statistics import MIN_PAIRS, Ratio, Summary, paired_ratio, summarize
from lonas_edge.bench.variants import SUBNET, Case, Facts, Timing, Variant
from lonas_edge.schema import Record

# names as in openvino_genai's PerfMetrics; milliseconds
METRICS: dict[str, Callable[[Timing], float]] = {
    "ttft": lambda timing: 1e3 * timing.ttft,
    "tpot": lambda timing: 1e3 * timing.tpot,
    "generate_duration": lambda timing: 1e3 * timing.end_to_end,
}
NOISY_HALF_WIDTH = 0.05  # an interval of more than ± this share of the ratio is too noisy
NOISY_OTHERS = 0.10  # maximum share of the processor that other programs and the host may use
MODEL_FIELDS = ("base", "adapter", "subnetwork", "weight_format", "sizes")  # of the manifest, repeated in the report


def metric_titles(case: Case) -> dict[str, str]:
    """Return the metrics of a case and their titles."""
    if case.new_tokens:
        return {"ttft": "TTFT", "tpot": "TPOT", "generate_duration": "end to end"}
    return {"generate_duration": "latency"}


@dataclass(frozen=True)
class VariantReport:
    """A variant, and its facts; `tokens_per_text` is relative to the whole vocabulary where it was trimmed."""

    name: str
    framework: str
    device: str
    precision: str
    source: str
    properties: Mapping[str, str]
    facts: Facts | None
    tokens_per_text: float = 1.0


@dataclass(frozen=True)
class Row:
    """Latency of one variant in one case, in milliseconds."""

    variant: str
    case: Case
    ttft: Summary | None  # time to first token; None for a classifier, as TPOT
    tpot: Summary | None
    generate_duration: Summary  # the complete generation, or the pass of a classifier
    throughput: Summary  # tokens (sequences for a classifier) per second


@dataclass(frozen=True)
class Comparison:
    """Latency of a variant over that of a baseline, paired over rounds."""

    variant: str
    baseline: str
    case: Case
    metric: str
    ratio: Ratio


@dataclass(frozen=True)
class Failure:
    """A variant that could not be measured in a case, and why."""

    variant: str
    case: Case
    reason: str


@dataclass(frozen=True)
class BenchRecord(Record):
    """A benchmark."""

    NAME = "bench"
    VERSION = 1
    AGAIN = "Run `lonas-edge bench` again."

    model: Mapping[str, Any]  # base, adapter and sub-network, from `lonas_edge.json`
    conditions: Mapping[str, Any]  # machine, versions, placement, schedule
    load: Mapping[str, float]  # largest shares of the processor that other programs used and the host took
    variants: Sequence[VariantReport]
    rows: Sequence[Row]
    comparisons: Sequence[Comparison]
    failures: Sequence[Failure]
    warnings: Sequence[str]  # limits of the figures
    interrupted: bool
    samples: Sequence[Sample] = field(repr=False)


def describe_variant(variant: Variant, facts: Facts | None) -> VariantReport:
    """Describe a variant without its path."""
    framework = RUNNERS[variant.kind].framework
    properties = dict(variant.properties)
    described = (variant.name, framework, variant.device, variant.precision, variant.path.name, properties, facts)
    return VariantReport(*described, variant.tokens_per_text)


def make_rows(measurement: Measurement, variants: Sequence[VariantReport], cases: Sequence[Case]) -> list[Row]:
    """Summarize every variant in every case that has samples."""
    return [
        _row(variant.name, case, timings)
        for case in cases
        for variant in variants
        if (timings := measurement.timings(variant.name, case))
    ]


def _row(variant: str, case: Case, timings: Sequence[Timing]) -> Row:
    summaries = {name: summarize([METRICS[name](timing) for timing in timings]) for name in metric_titles(case)}
    return Row(
        variant,
        case,
        ttft=summaries.get("ttft"),
        tpot=summaries.get("tpot"),
        generate_duration=summaries["generate_duration"],
        throughput=summarize([(len(timing.token_times) or 1) / timing.end_to_end for timing in timings]),
    )


def compare(measurement: Measurement, baselines: Sequence[str], cases: Sequence[Case]) -> list[Comparison]:
    """Compare the sub-network with each baseline in the rounds that both completed."""
    comparisons = []
    for case in cases:
        for baseline in baselines:
            for metric in metric_titles(case):
                pairs = measurement.paired(SUBNET, baseline, case, METRICS[metric])
                if pairs[0]:
                    comparisons.append(Comparison(SUBNET, baseline, case, metric, paired_ratio(*pairs)))
    return comparisons


def find_warnings(
    comparisons: Sequence[Comparison], load: Mapping[str, float], interrupted: bool, rounds: int, starts: int
) -> list[str]:
    """Return the limits of the figures.

    `load` has the shares of the processor that other programs used and the host took; `rounds` and `starts` were requested.
    """
    warnings = ["Interrupted: the figures include the completed rounds only."] if interrupted else []
    others, stolen = load.get("others", 0.0), load.get("stolen", 0.0)
    if others + stolen > NOISY_OTHERS:
        warnings.append(
            f"Too noisy: other programs used {others:.0%} of the processor, the host took {stolen:.0%} "
            f"(limit: {NOISY_OTHERS:.0%} in total). Stop them and measure again."
        )
    few = next((c.ratio.rounds for c in comparisons if c.ratio.low is None), None)
    if few is not None:
        warnings.append(f"{few} rounds give no 95 % interval; at least {MIN_PAIRS} are needed.")
    over_rounds = [c for c in comparisons if c.ratio.low is not None and c.ratio.starts < MIN_PAIRS]
    if over_rounds:
        which = dict.fromkeys(f"{c.baseline}, {c.case}: {c.ratio.starts} of {starts} starts" for c in over_rounds)
        advice = f" Use --rounds {MIN_PAIRS * ROUNDS_PER_START} or more." if starts < MIN_PAIRS else ""
        warnings.append(
            f"These intervals are over rounds and exclude the differences between process starts ({'; '.join(which)}).{advice}"
        )
    widest: dict[str, float] = {}  # by figure, over all baselines
    for each in comparisons:
        if (width := each.ratio.half_width) is not None and width > NOISY_HALF_WIDTH:
            figure = f"{metric_titles(each.case)[each.metric]}, {each.case}"
            widest[figure] = max(width, widest.get(figure, 0.0))
    if widest:
        figures = "; ".join(f"{figure} (up to ±{width:.0%})" for figure, width in widest.items())
        advice = f"Use more than {rounds} rounds, or a quieter machine."
        warnings.append(f"Too noisy for a claim, interval wider than ±{NOISY_HALF_WIDTH:.0%}: {figures}. {advice}")
    return warnings


def failures(measurement: Measurement) -> list[Failure]:
    """List what could not be measured."""
    return [Failure(variant, case, reason) for (variant, case), reason in measurement.failures.items()]
