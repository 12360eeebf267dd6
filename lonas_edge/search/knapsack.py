"""Exact knapsack by dynamic programming: the widths of least total sensitivity within a budget.

Costs are rounded up to a grid, so a solution never exceeds its budget. Nothing is lost where all costs are multiples of a unit
that divides the grid, as with equal layers.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

GRID = 10_080  # steps between the cheapest and the most expensive network; chosen for its many divisors


def knapsack(
    sensitivity: Sequence[Sequence[float]], cost: Sequence[Sequence[float]], budgets: Iterable[float]
) -> list[list[int]]:
    """Solve the knapsack for several budgets.

    Args:
        sensitivity: A row per group, a figure per width.
        cost: The same shape; costs of the chosen widths add up.
        budgets: Largest total costs.

    Returns:
        For each budget the chosen column of each group. A budget below the cheapest network gives the cheapest.
    """
    cheapest = [min(row) for row in cost]
    span = sum(max(row) for row in cost) - sum(cheapest)
    unit = span / GRID or 1.0
    steps = [[math.ceil((value - low) / unit - 1e-6) for value in row] for row, low in zip(cost, cheapest, strict=True)]
    # for the first groups and a number of steps: the least sensitivity, and the width of each group that gives it
    best, chosen = np.zeros(GRID + 1), np.zeros((len(cost), GRID + 1), np.int32)
    for group, (row, spent) in enumerate(zip(sensitivity, steps, strict=True)):
        options = np.full((len(row), GRID + 1), np.inf)
        for level, (value, size) in enumerate(zip(row, spent, strict=True)):
            if size <= GRID:
                options[level, size:] = best[: GRID + 1 - size] + value
        chosen[group], best = options.argmin(0), options.min(0)
    return [_trace(chosen, steps, (budget - sum(cheapest)) / unit) for budget in budgets]


def _trace(chosen: np.ndarray, steps: Sequence[Sequence[int]], room: float) -> list[int]:
    left = min(max(math.floor(room + 1e-6), 0), GRID)
    levels = []
    for row, spent in zip(chosen[::-1], steps[::-1], strict=True):
        level = int(row[left])
        levels.append(level)
        left -= spent[level]
    return levels[::-1]


def ladder(high: float, rungs: int) -> list[float]:
    """Return the budgets at equal distances between 0 and `high`, both excluded."""
    return [high * step / (rungs + 1) for step in range(1, rungs + 1)]
