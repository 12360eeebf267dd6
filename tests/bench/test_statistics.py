"""Summaries vs. numpy; intervals vs. published critical values, computed examples, and their coverage."""

import math
import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binomtest

from lonas_edge.bench.statistics import (
    Ratio,
    _signed_rank_quantile,
    difference_of_means,
    difference_of_shares,
    median_interval,
    paired_ratio,
    share_interval,
    summarize,
)


def test_summary_equals_numpy() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    result = summarize(values)
    assert result.mean == pytest.approx(np.mean(values))
    assert result.std == pytest.approx(np.std(values, ddof=1))
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert getattr(result, name) == pytest.approx(np.percentile(values, share))
    assert (result.min, result.max, result.count) == (1.0, 9.0, 6)
    single = summarize([2.0])
    assert (single.mean, single.std, single.p99, single.count) == (2.0, 0.0, 2.0, 1)


def over_rounds(variant: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """All rounds in one start."""
    return paired_ratio(variant, baseline, [0] * len(variant))


# two-sided 5 % critical values of Wilcoxon's signed-rank test (Wilcoxon & Wilcox 1964, and every table since)
@pytest.mark.parametrize(("n", "critical"), [(5, None), (6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52)])
def test_critical_values_are_the_published_ones(n: int, critical: int | None) -> None:
    assert _signed_rank_quantile(n, 0.025) == critical


def test_ratio_of_six_rounds() -> None:
    """Six ratios e^1 to e^6: Walsh averages run from 1 to 6, their median is 3.5, and T = 0 excludes none."""
    result = over_rounds([math.exp(k) for k in range(1, 7)], [1.0] * 6)
    assert result.value == pytest.approx(math.exp(3.5))
    assert (result.low, result.high) == (pytest.approx(math.exp(1)), pytest.approx(math.exp(6)))
    assert result.rounds == 6 and result.half_width == pytest.approx((math.exp(6) - math.e) / 2 / math.exp(3.5))
    few = over_rounds([2.0] * 5, [1.0] * 5)
    assert (few.value, few.low, few.high, few.half_width) == (2.0, None, None, None)


def test_each_of_six_starts_counts_once() -> None:
    """Six starts of two rounds, e^(k - 0.5) and e^(k + 0.5) in the k-th: each counts once, with e^k."""
    logs = [k + half for k in range(1, 7) for half in (-0.5, 0.5)]
    starts = [k for k in range(1, 7) for _ in range(2)]
    result = paired_ratio([math.exp(log) for log in logs], [1.0] * 12, starts)
    assert result.value == pytest.approx(math.exp(3.5))
    assert (result.low, result.high) == (pytest.approx(math.exp(1)), pytest.approx(math.exp(6)))
    assert (result.rounds, result.starts) == (12, 6)


def test_coverage_of_intervals_over_starts_that_differ() -> None:
    """Starts differ by 1.5 %, rounds by 2 %: an interval over rounds is too narrow."""
    draw = random.Random(0)
    covered: dict[str, list[bool]] = {"starts": [], "rounds": []}
    for _ in range(1000):
        times, starts = [], []
        for start in range(8):
            process = draw.gauss(0, 0.015)
            times += [2.0 * math.exp(process + draw.gauss(0, 0.02)) for _ in range(3)]
            starts += [start] * 3
        for name, labels in (("starts", starts), ("rounds", [0] * 24)):
            result = paired_ratio(times, [1.0] * 24, labels)
            covered[name].append(result.low is not None and result.high is not None and result.low <= 2.0 <= result.high)
    assert statistics.mean(covered["starts"]) == pytest.approx(0.961, abs=0.02)  # 1 - 2 * P(T <= 3) for n = 8
    assert statistics.mean(covered["rounds"]) < 0.9


def test_five_starts_give_an_interval_over_rounds() -> None:
    logs = [0.01 * k for k in range(10)]
    result = paired_ratio([math.exp(log) for log in logs], [1.0] * 10, [k // 2 for k in range(10)])
    single_start = over_rounds([math.exp(log) for log in logs], [1.0] * 10)
    assert (result.value, result.low, result.high) == (single_start.value, single_start.low, single_start.high)
    assert (result.starts, single_start.starts) == (5, 1)


def test_differences_by_hand() -> None:
    """Two examples: losses 2 and 4 against 3 and 4 over 2 tokens each; correct tokens 1 and 2 against 2 and 2."""
    losses, counts = (np.array([2.0, 4.0]), np.array([3.0, 4.0])), np.array([2, 2])
    loss = difference_of_means(*losses, counts)  # 1/4; terms 1 - 2/4 and -2/4 over 4 tokens; variance 2 * (1/8² + 1/8²)
    assert loss.value == pytest.approx(0.25)
    assert loss.high - loss.value == pytest.approx(1.959964 * math.sqrt(2 * 2 / 64))
    accuracy = difference_of_shares(np.array([1, 2]), np.array([2, 2]), counts, counts)  # 3/4 -> 4/4
    assert accuracy.value == pytest.approx(25.0)
    assert difference_of_means(losses[0], losses[0]).high == 0


@pytest.mark.parametrize(("right", "count"), [(15, 16), (16, 16), (0, 8), (430, 700)])
def test_the_interval_of_a_share_is_that_of_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = share_interval(100 * right / count, count)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_median_with_its_interval() -> None:
    known = median_interval([float(value) for value in range(1, 13)])
    assert known.value == 6.5
    assert (known.low, known.high) == (3.0, 10.0)  # the third from both ends: 12/2 - 1.96 * sqrt(12)/2 = 2.6
    assert (median_interval([3.0]).low, median_interval([3.0]).high) == (3.0, 3.0)
