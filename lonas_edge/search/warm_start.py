"""Warm start of a search: maximal, heuristic and minimal, then knapsack solutions for the picks and for a ladder of budgets."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lonas_edge.search.dimensions import Cost, Dimensions, Widths, costs_by_width
from lonas_edge.search.knapsack import knapsack, ladder
from lonas_edge.search.picks import Pick
from lonas_edge.search.sensitivity import SensitivityTable

NAMES = ("maximal", "heuristic", "minimal")
RUNGS = 12


def named(dimensions: Dimensions) -> dict[str, Widths]:
    """Return the networks that every search evaluates, fixed groups at their widest."""
    return {name: dimensions.projected(dimensions.space.preset(name)) for name in NAMES}


def named_origins(dimensions: Dimensions) -> dict[Widths, str]:
    """Return the origin of each of these networks, by its widths."""
    origins: dict[Widths, str] = {}
    for name, widths in named(dimensions).items():
        origins.setdefault(widths, f"warm-start:{name}")
    return origins


def warm_start(
    dimensions: Dimensions,
    evals: int,
    table: SensitivityTable,
    cost: Cost,
    aims: Mapping[Pick, Cost] = MappingProxyType({}),
) -> dict[Widths, str]:
    """Choose the networks that are evaluated first.

    Args:
        dimensions: The dimensions of the search.
        evals: Evaluations in all; the ladder takes at most half of them.
        cost: The searched cost.
        aims: Picks, each with the cost that it bounds. Each has its own budget, because no rung of the ladder may be near it.

    Returns:
        Origin of each network, by its widths.
    """
    origins = named_origins(dimensions)
    for pick, bounded in aims.items():
        choices = _choices(dimensions, table, bounded)
        largest = bounded(dimensions.maximal)
        [levels] = _solved(choices, [_most(choices) - (largest - pick.limit(largest))])
        origins.setdefault(dimensions.widths(levels), f"warm-start:pick:{pick.expression}")
    choices = _choices(dimensions, table, cost)
    budgets = ladder(_most(choices), min(RUNGS, evals // 2))
    for budget, levels in zip(budgets, _solved(choices, budgets), strict=True):
        origins.setdefault(dimensions.widths(levels), f"warm-start:knapsack:{budget / _most(choices):.3f}")
    return origins


@dataclass(frozen=True)
class _Choice:
    """Levels of groups that are chosen together, by dimension; sensitivity; cost above the cheapest choice."""

    levels: Mapping[int, int]
    sensitivity: float
    cost: float


def _choices(dimensions: Dimensions, table: SensitivityTable, cost: Cost) -> list[list[_Choice]]:
    """List the choices of each group; for a block that holds other groups, all their widths, or none.

    The first choice is the maximal one.
    """
    costs = costs_by_width(dimensions, cost)
    rows = [table.rows[index] for index in dimensions.searched]
    dims = {index: dim for dim, index in enumerate(dimensions.searched)}
    holds: dict[int, list[int]] = {}
    for group, block in dimensions.inside.items():
        if group in dims and block in dims:
            holds.setdefault(dims[block], []).append(dims[group])
    alone = set(range(len(costs))) - holds.keys() - {dim for inner in holds.values() for dim in inner}
    choices = [[_Choice({p: level}, rows[p][level], value) for level, value in enumerate(costs[p])] for p in sorted(alone)]
    for block, inner in holds.items():
        kept = []
        for levels in itertools.product(*(range(len(costs[dim])) for dim in inner)):
            chosen = dict(zip(inner, levels, strict=True))
            saved = sum(costs[dim][0] - costs[dim][level] for dim, level in chosen.items())
            sensitivity = sum(rows[dim][level] for dim, level in chosen.items())
            kept.append(_Choice({block: 0, **chosen}, sensitivity, costs[block][0] - saved))
        choices.append([*kept, _Choice({block: 1, **dict.fromkeys(inner, 0)}, rows[block][1], 0.0)])
    return choices


def _most(choices: Sequence[Sequence[_Choice]]) -> float:
    """Return the cost of the maximal network above the cheapest one."""
    return sum(row[0].cost for row in choices)


def _solved(choices: Sequence[Sequence[_Choice]], budgets: Sequence[float]) -> list[list[int]]:
    """Return the levels of least total sensitivity for each budget."""
    sensitivities = [[choice.sensitivity for choice in row] for row in choices]
    costs = [[choice.cost for choice in row] for row in choices]
    solutions = []
    for solution in knapsack(sensitivities, costs, budgets):
        levels = {p: level for row, chosen in zip(choices, solution, strict=True) for p, level in row[chosen].levels.items()}
        solutions.append([levels[dim] for dim in range(len(levels))])
    return solutions
