"""The statistics of all measurements: summaries, paired ratios and differences, and their 95 % intervals."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby

import numpy as np

Z_95 = 1.959964  # half of a 95 % interval in standard errors, of a normal distribution
MIN_PAIRS = 6  # rounds or starts; with fewer, no signed-rank interval reaches 95 %
DRAWS = 500  # of a bootstrap whose standard deviation is a standard error: known to 3 %
RESAMPLES = 1000  # of a bootstrap whose percentiles are an interval


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


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

    @property
    def half_width(self) -> float | None:
        """Half of the interval as a share of the ratio; None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2 / self.value


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


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median with its interval from order statistics (binomial, normal approximation)."""
    ordered, count = sorted(values), len(values)
    low = max(0, math.floor(count / 2 - Z_95 * math.sqrt(count) / 2))
    return Interval(statistics.median(ordered), ordered[low], ordered[count - 1 - low])


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
    outside = _signed_rank_quantile(len(independent), 0.025)
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


def difference_of_means(first: np.ndarray, second: np.ndarray, counts: np.ndarray | None = None) -> Interval:
    """Return second - first, paired by example: the sum of the differences over the sum of `counts`, all [examples].

    `counts` are units of an example, such as its tokens; 1 by default. The interval is that of a ratio estimator.
    """
    counts = np.ones_like(first) if counts is None else counts
    differences = second - first
    value = float(differences.sum() / counts.sum())
    half = _half_width((differences - value * counts) / counts.sum())
    return Interval(value, value - half, value + half)


def difference_of_shares(
    first: np.ndarray, second: np.ndarray, first_counts: np.ndarray, second_counts: np.ndarray
) -> Interval:
    """Return second - first in points, paired by example: each a share of its own counts (ratio estimators, linearized).

    `first` and `second` are the units of an example that are correct, of `first_counts` and `second_counts`, all [examples].
    """
    shares = float(first.sum() / first_counts.sum()), float(second.sum() / second_counts.sum())
    influences = [
        (correct - share * counts) / counts.sum()
        for correct, counts, share in zip((first, second), (first_counts, second_counts), shares, strict=True)
    ]
    value, half = shares[1] - shares[0], _half_width(influences[1] - influences[0])
    return Interval(100 * value, 100 * (value - half), 100 * (value + half))


def _half_width(influences: np.ndarray) -> float:
    """Half of the 95 % interval of a sum of independent terms with mean 0."""
    count = len(influences)
    return Z_95 * math.sqrt(count / max(1, count - 1) * float((influences**2).sum()))


def difference_of_statistics(
    statistic: Callable[[np.ndarray, np.ndarray], float], first: np.ndarray, second: np.ndarray, labels: np.ndarray
) -> Interval:
    """Return statistic(labels, second) - statistic(labels, first), all [examples], with the percentiles of a bootstrap."""
    from scipy.stats import bootstrap

    def change(one: np.ndarray, two: np.ndarray, true: np.ndarray) -> float:
        return statistic(true, two) - statistic(true, one)

    found = bootstrap(
        (first, second, labels), change, paired=True, vectorized=False, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(change(first, second, labels), float(found.low), float(found.high))


def share_interval(percent: float, count: int) -> Interval:
    """Return Wilson's 95 % interval (1927) of a mean of `count` scores between 0 and 100 %, also where all are equal."""
    share, scaled = percent / 100, Z_95**2 / count
    middle = (share + scaled / 2) / (1 + scaled)
    half = math.sqrt(share * (1 - share) * scaled + scaled**2 / 4) / (1 + scaled)
    return Interval(percent, 100 * (middle - half), 100 * (middle + half))


def standard_error(values: np.ndarray) -> float | None:
    """Return the standard error of a mean; None with fewer than two values."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def bootstrap_error(statistic: Callable[[np.ndarray], float], count: int) -> float:
    """Return the standard deviation of a statistic of drawn examples; all models of a comparison get the same draws.

    `statistic` takes the indices of drawn examples, below `count`.
    """
    generator = np.random.default_rng(0)
    return float(np.std([statistic(generator.integers(count, size=count)) for _ in range(DRAWS)]))
