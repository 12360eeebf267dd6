"""What measurements say: summaries, paired speed-ups with their intervals, and whether the machine was quiet enough."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby

CONFIDENCE = 0.95
MIN_PAIRS = 6  # rounds or starts; with fewer, no signed-rank interval reaches 95 %
NOISY_HALF_WIDTH = 0.05  # half an interval beyond this share of the speed-up: too noisy
NOISY_OTHERS = 0.10  # more than this share of the processor used by others, or stolen by the host: too noisy


@dataclass(frozen=True)
class Summary:
    """Summary of a sample. Percentiles interpolate linearly between order statistics (numpy's default)."""

    mean: float
    std: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """Summarize a sample.

    Args:
        values: One or more values.

    Returns:
        The summary; `std` is the sample's standard deviation, 0 for one value.
    """
    ordered = sorted(values)
    std = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Summary(statistics.fmean(ordered), std, p50, p90, p99, ordered[0], ordered[-1], len(ordered))


def percentile(ordered: Sequence[float], share: float) -> float:
    """A percentile of sorted values, linearly interpolated."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Speedup:
    """How many times faster one arm is than another, paired over rounds.

    Attributes:
        ratio: Hodges-Lehmann estimate of the ratio of times, other / subnet; above 1 the sub-network is faster.
        low: Lower end of the 95 % interval; None with fewer than 6 rounds.
        high: Its upper end.
        rounds: Rounds that both completed.
        starts: Starts of the arms that these rounds were spread over. The interval is over the starts where they are 6 or
            more; otherwise it is over the rounds, and does not hold what one start differs from the next.
    """

    ratio: float
    low: float | None
    high: float | None
    rounds: int
    starts: int

    @property
    def half_width(self) -> float | None:
        """Half the interval, as a share of the ratio."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2 / self.ratio

    @property
    def noisy(self) -> bool:
        """Whether the interval is too wide for a claim, or there is none."""
        return self.half_width is None or self.half_width > NOISY_HALF_WIDTH


def speedup(other: Sequence[float], subnet: Sequence[float], starts: Sequence[int]) -> Speedup:
    """The paired speed-up, with the interval of Wilcoxon's signed-rank test.

    Logarithms of the ratios are averaged pairwise (Walsh averages); their median is the Hodges-Lehmann estimate and their order
    statistics are the interval (Hollander, Wolfe & Chicken, "Nonparametric Statistical Methods", 2014, 3.2 and 3.4). A
    disturbed round moves it little, and no normality is assumed. Rounds of one start are not independent: two processes of one
    program differ a little for as long as they live. So each of 6 or more starts counts once, with the estimate of its rounds
    (Kalibera & Jones, "Rigorous Benchmarking in Reasonable Time", 2013: replicate at the highest level that varies).

    Args:
        other: Seconds of the other arm in each round.
        subnet: Seconds of the sub-network in the same rounds.
        starts: The start of the arms that each round belongs to, in the order of rounds.

    Returns:
        The speed-up.
    """
    logs = [math.log(a / b) for a, b in zip(other, subnet, strict=True)]
    by_start = [[log for _, log in part] for _, part in groupby(zip(starts, logs, strict=True), key=lambda pair: pair[0])]
    independent = [statistics.median(_walsh(part)) for part in by_start] if len(by_start) >= MIN_PAIRS else logs
    walsh = _walsh(independent)
    center = math.exp(statistics.median(walsh))
    outside = _signed_rank_quantile(len(independent), (1 - CONFIDENCE) / 2)
    low, high = (None, None) if outside is None else (math.exp(walsh[outside]), math.exp(walsh[-1 - outside]))
    return Speedup(center, low, high, len(logs), len(by_start))


def _walsh(values: Sequence[float]) -> list[float]:
    """Averages of all pairs, each value with itself included, sorted."""
    return sorted((a + b) / 2 for a, b in combinations_with_replacement(values, 2))


def _signed_rank_quantile(n: int, tail: float) -> int | None:
    """The largest k with P(T <= k) <= tail for Wilcoxon's T of n pairs: so many Walsh averages lie outside at either end."""
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
