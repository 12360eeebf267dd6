"""Summarize samples, and compute paired ratios of latency with confidence intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby

CONFIDENCE = 0.95
MIN_PAIRS = 6  # rounds or starts; with fewer, no signed-rank interval reaches 95 %
NOISY_HALF_WIDTH = 0.05  # an interval of more than ± this share of the ratio is too noisy
NOISY_OTHERS = 0.10  # maximum share of the processor that other programs and the host may use


@dataclass(frozen=True)
class Ratio:
    """Ratio of a variant's latency to its baseline's; below 1 the variant is faster.

    `low` and `high` are the 95 % interval, None with fewer than 6 rounds. It is over process starts if there are 6 or more,
    otherwise over rounds.
    """

    value: float
    low: float | None
    high: float | None
    rounds: int
    starts: int


@dataclass(frozen=True)
class Summary:
    """Summary of a sample. Percentiles interpolate linearly (numpy's default)."""

    mean: float
    std: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """Summarize one or more values; `std` is the sample standard deviation, 0 for one value."""
    ordered = sorted(values)
    std = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    percentiles = statistics.quantiles(ordered, n=100, method="inclusive") if len(ordered) > 1 else ordered * 99
    p50, p90, p99 = (percentiles[share - 1] for share in (50, 90, 99))
    return Summary(statistics.fmean(ordered), std, p50, p90, p99, ordered[0], ordered[-1], len(ordered))


def half_width(ratio: Ratio) -> float | None:
    """Return half the interval as a share of the ratio; None without an interval."""
    return None if ratio.low is None or ratio.high is None else (ratio.high - ratio.low) / 2 / ratio.value


def paired_ratio(variant: Sequence[float], baseline: Sequence[float], starts: Sequence[int]) -> Ratio:
    """Estimate the ratio of a variant's times to a baseline's, with the interval of Wilcoxon's signed-rank test.

    The logarithms of the ratios are averaged pairwise (Walsh averages). Their median is the Hodges-Lehmann estimate, and their
    order statistics give the interval (Hollander, Wolfe & Chicken, "Nonparametric Statistical Methods", 2014, 3.2 and 3.4). The
    method assumes no normal distribution, and an outlier changes little. Rounds of one start are not independent, so with 6 or
    more starts each start counts once, with the estimate of its rounds (Kalibera & Jones, "Rigorous Benchmarking in Reasonable
    Time", 2013: replicate at the highest level that varies).

    Times are those of the same rounds; `starts` is the process start that each round belongs to, in order.
    """
    logs = [math.log(a / b) for a, b in zip(variant, baseline, strict=True)]
    by_start = [[log for _, log in part] for _, part in groupby(zip(starts, logs, strict=True), key=lambda pair: pair[0])]
    independent = [statistics.median(_walsh(part)) for part in by_start] if len(by_start) >= MIN_PAIRS else logs
    walsh = _walsh(independent)
    center = math.exp(statistics.median(walsh))
    outside = _signed_rank_quantile(len(independent), (1 - CONFIDENCE) / 2)
    low, high = (None, None) if outside is None else (math.exp(walsh[outside]), math.exp(walsh[-1 - outside]))
    return Ratio(center, low, high, len(logs), len(by_start))


def _walsh(values: Sequence[float]) -> list[float]:
    """Return the sorted averages of all pairs, including each value with itself."""
    return sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))


def _signed_rank_quantile(n: int, tail: float) -> int | None:
    """Return the largest k with P(T <= k) <= tail for Wilcoxon's T of n pairs: the Walsh averages outside at either end."""
    counts = [1]
    for rank in range(1, n + 1):
        longer = counts + [0] * rank
        for index, count in enumerate(counts):
            longer[index + rank] += count
        counts = longer
    below, total = 0, 2**n
    for k, count in enumerate(counts):
        below += count
        if below / total > tail:
            return k - 1 if k > 0 else None
    return None
