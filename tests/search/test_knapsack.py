"""The knapsack against all combinations."""

import itertools
import random

import pytest

from lonas_edge.search.proposals import knapsack


def least(sensitivity: list[list[float]], cost: list[list[float]], budget: float) -> float:
    """The least sensitivity within a budget, by exhaustive search."""
    totals = []
    for levels in itertools.product(*(range(len(row)) for row in cost)):
        if sum(row[level] for row, level in zip(cost, levels, strict=True)) <= budget:
            totals.append(sum(row[level] for row, level in zip(sensitivity, levels, strict=True)))
    return min(totals)


@pytest.mark.parametrize("seed", range(2))
def test_never_over_the_budget_and_nearly_exact(seed: int) -> None:
    draw = random.Random(seed)
    sensitivity = [sorted(draw.random() for _ in range(3)) for _ in range(7)]
    cost = [sorted((draw.uniform(1, 30) for _ in range(3)), reverse=True) for _ in range(7)]
    low, high = sum(map(min, cost)), sum(map(max, cost))
    budgets = [low + (high - low) * rung / 6 for rung in range(1, 6)]
    for budget in budgets:
        levels = knapsack(sensitivity, cost, budget)
        assert sum(row[level] for row, level in zip(cost, levels, strict=True)) <= budget
        total = sum(row[level] for row, level in zip(sensitivity, levels, strict=True))
        # rounding up costs at most a step of the grid per group
        assert (
            least(sensitivity, cost, budget)
            <= total + 1e-12
            <= least(sensitivity, cost, budget - 7 * (high - low) / 10_080) + 1e-9
        )


def test_the_ends() -> None:
    sensitivity, cost = [[0.0, 1.0], [0.0, 2.0]], [[5.0, 1.0], [7.0, 2.0]]
    assert [knapsack(sensitivity, cost, budget) for budget in (12.0, 100.0, 3.0, 0.0)] == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS prints lines in C while it solves some of these."""
    draw = random.Random(0)
    for _ in range(3):
        sensitivity = [[0.0, *sorted(draw.random() for _ in range(4))] for _ in range(30)]
        for rung in range(1, 13):
            knapsack(sensitivity, [[4.0, 3.0, 2.0, 1.0, 0.0]] * 30, 120 * rung / 13)
    print("seen")
    assert capfd.readouterr().out == "seen\n"
