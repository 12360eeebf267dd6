"""Summaries against numpy, intervals against published critical values, a hand-made sample and their own coverage."""

import math
import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest

from lonas_edge.bench.statistics import Speedup, _signed_rank_quantile, percentile, speedup, summarize


def test_summary_is_numpys() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    found = summarize(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(values, share))
    assert (found.min, found.max, found.count) == (1.0, 9.0, 6)


def test_one_value() -> None:
    found = summarize([2.0])
    assert (found.mean, found.std, found.p50, found.p99, found.count) == (2.0, 0.0, 2.0, 2.0, 1)
    assert percentile([1.0, 3.0], 0.25) == 1.5


def over_rounds(other: Sequence[float], subnet: Sequence[float]) -> Speedup:
    """All rounds in one start."""
    return speedup(other, subnet, [0] * len(other))


# two-sided 5 % critical values of Wilcoxon's signed-rank test (Wilcoxon & Wilcox 1964, and every table since)
@pytest.mark.parametrize(("n", "critical"), [(5, None), (6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52)])
def test_critical_values_are_the_published_ones(n: int, critical: int | None) -> None:
    assert _signed_rank_quantile(n, 0.025) == critical


def test_speedup_by_hand() -> None:
    """Six ratios e^1 to e^6: Walsh averages run from 1 to 6, their median is 3.5, and T = 0 leaves none of them out."""
    found = over_rounds([math.exp(k) for k in range(1, 7)], [1.0] * 6)
    assert found.ratio == pytest.approx(math.exp(3.5))
    assert (found.low, found.high) == (pytest.approx(math.exp(1)), pytest.approx(math.exp(6)))
    assert found.rounds == 6 and found.noisy


def test_which_arm_is_faster_is_not_mixed_up() -> None:
    assert over_rounds([2.0] * 8, [1.0] * 8) == Speedup(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0), 8, 1)  # type: ignore[arg-type]
    assert not over_rounds([2.0] * 8, [1.0] * 8).noisy


def test_pairs_take_out_what_rounds_share() -> None:
    """A machine that slows down by half in some rounds slows both arms: the ratio does not notice."""
    slowed = [1, 1.5, 1, 1, 1.5, 1.5, 1, 1]
    found = over_rounds([3.0 * s for s in slowed], [1.0 * s for s in slowed])
    assert (found.ratio, found.low, found.high) == (pytest.approx(3.0), pytest.approx(3.0), pytest.approx(3.0))


def test_one_disturbed_round_changes_little() -> None:
    times = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0]
    disturbed = [*times[:-1], 20.0]
    assert over_rounds(disturbed, [0.5] * 10).ratio == pytest.approx(over_rounds(times, [0.5] * 10).ratio, rel=0.02)


def test_few_rounds_give_no_interval() -> None:
    found = over_rounds([2.0] * 5, [1.0] * 5)
    assert (found.low, found.high, found.half_width) == (None, None, None)
    assert found.noisy


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = []
    for _ in range(2000):
        other = [2.0 * math.exp(draw.gauss(0, 0.05)) for _ in range(10)]
        subnet = [math.exp(draw.gauss(0, 0.05)) for _ in range(10)]
        found = over_rounds(other, subnet)
        covered.append(found.low is not None and found.high is not None and found.low <= 2.0 <= found.high)
    assert statistics.mean(covered) == pytest.approx(0.951, abs=0.015)  # 1 - 2 * P(T <= 8) for n = 10


def test_starts_by_hand() -> None:
    """Six starts of two rounds, e^(k - 0.5) and e^(k + 0.5) in the k-th: each counts once, with e^k."""
    logs = [k + half for k in range(1, 7) for half in (-0.5, 0.5)]
    starts = [k for k in range(1, 7) for _ in range(2)]
    found = speedup([math.exp(log) for log in logs], [1.0] * 12, starts)
    assert found.ratio == pytest.approx(math.exp(3.5))
    assert (found.low, found.high) == (pytest.approx(math.exp(1)), pytest.approx(math.exp(6)))
    assert (found.rounds, found.starts) == (12, 6)


def test_five_starts_give_an_interval_over_rounds() -> None:
    logs = [0.01 * k for k in range(10)]
    found = speedup([math.exp(log) for log in logs], [1.0] * 10, [k // 2 for k in range(10)])
    one = over_rounds([math.exp(log) for log in logs], [1.0] * 10)
    assert (found.ratio, found.low, found.high) == (one.ratio, one.low, one.high)
    assert (found.starts, one.starts) == (5, 1)


def test_intervals_over_starts_cover_the_truth_where_starts_differ() -> None:
    """Processes that differ by 1.5 % while they live, rounds by 2 %: over rounds alone the interval promises too much."""
    draw = random.Random(0)
    covered: dict[str, list[bool]] = {"starts": [], "rounds": []}
    for _ in range(1000):
        times, starts = [], []
        for start in range(8):
            process = draw.gauss(0, 0.015)
            times += [2.0 * math.exp(process + draw.gauss(0, 0.02)) for _ in range(3)]
            starts += [start] * 3
        for name, labels in (("starts", starts), ("rounds", [0] * 24)):
            found = speedup(times, [1.0] * 24, labels)
            covered[name].append(found.low is not None and found.high is not None and found.low <= 2.0 <= found.high)
    assert statistics.mean(covered["starts"]) == pytest.approx(0.961, abs=0.02)  # 1 - 2 * P(T <= 3) for n = 8
    assert statistics.mean(covered["rounds"]) < 0.9
