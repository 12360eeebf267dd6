"""Warm start of a search: maximal, heuristic and minimal, then knapsack solutions for the picks and for a ladder of budgets."""

import ctypes
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from lonas_edge.search.cost import CostFunction
from lonas_edge.search.dimensions import Dimensions, Sensitivity, Widths
from lonas_edge.search.picks import Pick

RUNGS = 12
GRID = 10_080  # steps of a cost between the cheapest and the most expensive network; chosen for its many divisors


def named_origins(dimensions: Dimensions) -> dict[Widths, str]:
    """Return the origin of maximal, heuristic and minimal, by their widths."""
    origins: dict[Widths, str] = {}
    for name, widths in dimensions.named().items():
        origins.setdefault(widths, f"warm-start:{name}")
    return origins


def warm_start(
    dimensions: Dimensions, evals: int, table: Sensitivity, cost: CostFunction, aims: Mapping[Pick, CostFunction]
) -> dict[Widths, str]:
    """Choose the networks that are evaluated first.

    Args:
        dimensions: The dimensions of the search.
        evals: Evaluations in all; the ladder takes at most half of them.
        table: The sensitivity table.
        cost: The searched cost.
        aims: Picks, each with the cost that it bounds. Each has its own budget, because no rung of the ladder may be near it.

    Returns:
        Origin of each network, by its widths.
    """
    rows = [table[index] for index in dimensions.searched]
    dims = {index: dim for dim, index in enumerate(dimensions.searched)}
    inside = {dims[group]: dims[block] for group, block in dimensions.inside.items() if group in dims and block in dims}
    origins = named_origins(dimensions)
    for pick, bounded in aims.items():
        costs, largest = _list_costs(dimensions, bounded, inside), bounded(dimensions.maximal)
        budget = sum(row[0] for row in costs) - (largest - pick.limit(largest))
        widths = dimensions.widths(knapsack(rows, costs, budget, inside))
        origins.setdefault(widths, f"warm-start:pick:{pick.expression}")
    costs, rungs = _list_costs(dimensions, cost, inside), min(RUNGS, evals // 2)
    most = sum(row[0] for row in costs)
    for rung in range(1, rungs + 1):
        budget = most * rung / (rungs + 1)
        widths = dimensions.widths(knapsack(rows, costs, budget, inside))
        origins.setdefault(widths, f"warm-start:knapsack:{budget / most:.3f}")
    return origins


def _list_costs(dimensions: Dimensions, cost: CostFunction, inside: Mapping[int, int]) -> list[list[float]]:
    """List the costs of levels above the narrowest one; of a group in a removable block above the widest, so 0 or less."""
    return [[value - row[0] for value in row] if dim in inside else list(row) for dim, row in enumerate(dimensions.costs(cost))]


def knapsack(
    sensitivity: Sequence[Sequence[float]],
    cost: Sequence[Sequence[float]],
    budget: float,
    inside: Mapping[int, int] = MappingProxyType({}),
) -> list[int]:
    """Solve the multiple-choice knapsack: choose a column of each row, with the least total sensitivity within a budget.

    Costs are rounded up to a grid, so that the solver's tolerance never exceeds the budget. Nothing is lost where all costs are
    multiples of a unit that divides the grid, as with equal layers.

    Args:
        sensitivity: A row per group, a figure per width.
        cost: The same shape.
        budget: Largest total cost. One below the cheapest network gives the cheapest.
        inside: The row of the block that holds a row's group. Without the block, its first column, the group is not narrowed.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    cheapest = [0.0 if index in inside else min(row) for index, row in enumerate(cost)]
    most = sum(max(row) for index, row in enumerate(cost) if index not in inside)
    unit = (most - sum(cheapest)) / GRID or 1.0
    steps = [math.ceil((value - low) / unit - 1e-6) for row, low in zip(cost, cheapest, strict=True) for value in row]
    room = max(math.floor((budget - sum(cheapest)) / unit + 1e-6), 0)
    ends = np.cumsum([len(row) for row in cost])
    starts = [0, *ends[:-1]]
    one_each, kept = np.zeros((len(cost), ends[-1])), np.zeros((len(inside), ends[-1]))
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        one_each[row, start:end] = 1
    for index, (group, block) in enumerate(inside.items()):
        kept[index, starts[group] + 1 : ends[group]] = 1
        kept[index, starts[block]] = -1
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(np.array([steps]), -np.inf, room)]
    if inside:
        constraints.append(LinearConstraint(kept, -np.inf, 0))
    objective = np.concatenate([np.asarray(row, float) for row in sensitivity])
    with _silent_output():
        solved = milp(objective, integrality=1, bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0})
    return [int(part.argmax()) for part in np.split(solved.x, ends[:-1])]


@contextmanager
def _silent_output() -> Iterator[None]:
    """Drop what HiGHS (1.12) prints on standard output, where `--json` has one document."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)  # C's buffer
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
