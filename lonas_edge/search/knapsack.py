"""Which width for each group does the least damage within a budget: exact, by dynamic programming.

Costs are rounded up to a grid, so that a solution never exceeds its budget; where all costs are multiples of one unit that
divides the grid, as with equal layers, nothing is lost.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

GRID = 10_080  # steps between the cheapest and the dearest network; its many divisors are why it is this number


def solve(damage: Sequence[Sequence[float]], cost: Sequence[Sequence[float]], budgets: Iterable[float]) -> list[list[int]]:
    """Solve the knapsack for several budgets.

    Args:
        damage: For each group, that of each of its widths.
        cost: The same shape; only differences within a group count, added to the others'.
        budgets: What a network may cost: the sum of its widths' costs.

    Returns:
        For each budget the place of each group's width. A budget below the cheapest network gives that.
    """
    cheapest = [min(row) for row in cost]
    span = sum(max(row) for row in cost) - sum(cheapest)
    unit = span / GRID or 1.0
    steps = [[math.ceil((value - low) / unit - 1e-6) for value in row] for row, low in zip(cost, cheapest, strict=True)]
    # with the first groups and at most so many steps spent on them: the least damage, and each group's width that gives it
    best, chosen = np.zeros(GRID + 1), np.zeros((len(cost), GRID + 1), np.int32)
    for group, (row, spent) in enumerate(zip(damage, steps, strict=True)):
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


def ladder(low: float, high: float, rungs: int) -> list[float]:
    """Budgets at equal distances between the cheapest and the dearest network, both left out."""
    return [low + (high - low) * step / (rungs + 1) for step in range(1, rungs + 1)]
