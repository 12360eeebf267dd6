"""Warm start of a search: maximal, heuristic and minimal, then knapsack solutions for the picks and for a ladder of budgets."""

import ctypes
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from lonas_edge.search.cost import CostFunction
from lonas_edge.search.dimensions import Dimensions, Table, Widths
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
    dimensions: Dimensions,
    evals: int,
    table: Table,
    cost: CostFunction,
    aims: Mapping[Pick, CostFunction] = MappingProxyType({}),
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
    origins = named_origins(dimensions)
    for pick, bounded in aims.items():
        choices = _list_choices(dimensions, table, bounded)
        largest = bounded(dimensions.maximal)
        budget = _maximal_cost(choices) - (largest - pick.limit(largest))
        origins.setdefault(_solve(dimensions, choices, budget), f"warm-start:pick:{pick.expression}")
    choices = _list_choices(dimensions, table, cost)
    rungs, most = min(RUNGS, evals // 2), _maximal_cost(choices)
    for rung in range(1, rungs + 1):
        budget = most * rung / (rungs + 1)
        origins.setdefault(_solve(dimensions, choices, budget), f"warm-start:knapsack:{budget / most:.3f}")
    return origins


@dataclass(frozen=True)
class _Choice:
    """Levels of groups that are chosen together, by dimension; sensitivity; cost above the cheapest choice."""

    levels: Mapping[int, int]
    sensitivity: float
    cost: float


def _list_choices(dimensions: Dimensions, table: Table, cost: CostFunction) -> list[list[_Choice]]:
    """List the choices of each group; for a block that holds other groups, all their widths, or none.

    The first choice is the maximal one.
    """
    costs = dimensions.costs(cost)
    rows = [table[index] for index in dimensions.searched]
    dims = {index: dim for dim, index in enumerate(dimensions.searched)}
    held: dict[int, list[int]] = {}
    for group, block in dimensions.inside.items():
        if group in dims and block in dims:
            held.setdefault(dims[block], []).append(dims[group])
    grouped = set(held).union(*held.values())
    choices = []
    for dim in range(len(costs)):
        if dim not in grouped:
            choices.append([_Choice({dim: level}, rows[dim][level], value) for level, value in enumerate(costs[dim])])
    for block, inside in held.items():
        kept = []
        for levels in itertools.product(*(range(len(costs[dim])) for dim in inside)):
            chosen = dict(zip(inside, levels, strict=True))
            saved = sum(costs[dim][0] - costs[dim][level] for dim, level in chosen.items())
            sensitivity = sum(rows[dim][level] for dim, level in chosen.items())
            kept.append(_Choice({block: 0, **chosen}, sensitivity, costs[block][0] - saved))
        choices.append([*kept, _Choice({block: 1, **dict.fromkeys(inside, 0)}, rows[block][1], 0.0)])
    return choices


def _maximal_cost(choices: Sequence[Sequence[_Choice]]) -> float:
    """Return the cost of the maximal network above the cheapest one."""
    return sum(row[0].cost for row in choices)


def _solve(dimensions: Dimensions, choices: Sequence[Sequence[_Choice]], budget: float) -> Widths:
    """Return the network of least total sensitivity within a budget."""
    sensitivity = [[choice.sensitivity for choice in row] for row in choices]
    cost = [[choice.cost for choice in row] for row in choices]
    levels: dict[int, int] = {}
    for row, chosen in zip(choices, knapsack(sensitivity, cost, budget), strict=True):
        levels |= row[chosen].levels
    return dimensions.widths([levels[dim] for dim in range(len(levels))])


def knapsack(sensitivity: Sequence[Sequence[float]], cost: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Solve the multiple-choice knapsack: choose a column of each row, with the least total sensitivity within a budget.

    Costs are rounded up to a grid, so that the solver's tolerance never exceeds the budget. Nothing is lost where all costs are
    multiples of a unit that divides the grid, as with equal layers.

    Args:
        sensitivity: A row per group, a figure per width.
        cost: The same shape.
        budget: Largest total cost. One below the cheapest network gives the cheapest.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    cheapest = [min(row) for row in cost]
    unit = (sum(map(max, cost)) - sum(cheapest)) / GRID or 1.0
    steps = [math.ceil((value - low) / unit - 1e-6) for row, low in zip(cost, cheapest, strict=True) for value in row]
    room = max(math.floor((budget - sum(cheapest)) / unit + 1e-6), 0)
    ends = np.cumsum([len(row) for row in cost])
    one_each = np.zeros((len(cost), ends[-1]))
    for row, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        one_each[row, start:end] = 1
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(np.array([steps]), -np.inf, room)]
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
