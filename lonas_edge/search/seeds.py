"""Seeds of a search: maximal, heuristic and minimal, and the knapsack's solutions for the picks and for a ladder of budgets."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import Dimensions, Network, costs_by_width
from lonas_edge.search.knapsack import ladder, solve
from lonas_edge.search.picks import Pick
from lonas_edge.space.subnetwork import select

NAMES = ("maximal", "heuristic", "minimal")
RUNGS = 12


def named(dimensions: Dimensions) -> dict[str, Network]:
    """The networks that every search evaluates, at the first weight format; groups that are not searched at their widest."""
    found = {name: select(dimensions.space, name).widths for name in NAMES}
    return {name: (dimensions.projected(widths), dimensions.formats[0]) for name, widths in found.items()}


def seeds(
    dimensions: Dimensions,
    evals: int,
    table: DamageTable | None = None,
    cost: Callable[[Sequence[int], str], float] | None = None,
    aims: Mapping[Pick, Callable[[Sequence[int], str], float]] = MappingProxyType({}),
) -> dict[Network, str]:
    """The networks that are evaluated first.

    Args:
        dimensions: What is searched.
        evals: Evaluations in all; the ladder takes half of them at most.
        table: The damage of each group alone; only the named networks without it.
        cost: Of a network; needed with `table`.
        aims: Picks, each with the cost that it bounds; solved exactly, since no rung of the ladder need be near.

    Returns:
        Where each comes from, by network.
    """
    found: dict[Network, str] = {}
    for weight_format in dimensions.formats:
        for name, (widths, _) in named(dimensions).items():
            found.setdefault((widths, weight_format), f"seed:{name}")
    if table is None or cost is None:
        return found
    for weight_format, (pick, bounded) in itertools.product(dimensions.formats, aims.items()):
        levels = _aimed(dimensions, table, pick, bounded, weight_format)
        found.setdefault(dimensions.network(levels, weight_format), f"seed:pick:{pick.expression}")
    rungs = min(RUNGS, evals // (2 * len(dimensions.formats)))
    for weight_format in dimensions.formats:
        costs = costs_by_width(dimensions, cost, weight_format)
        damage = [table.rows[index] for index in dimensions.searched]
        whole = sum(row[0] for row in costs)
        budgets = ladder(0.0, whole, rungs)
        for budget, levels in zip(budgets, solve(damage, costs, budgets), strict=True):
            found.setdefault(dimensions.network(levels, weight_format), f"seed:knapsack:{budget / whole:.3f}")
    return found


def _aimed(
    dimensions: Dimensions,
    table: DamageTable,
    pick: Pick,
    cost: Callable[[Sequence[int], str], float],
    weight_format: str,
) -> list[int]:
    """The network of least predicted damage under a pick's bound."""
    costs = costs_by_width(dimensions, cost, weight_format)
    maximal = cost(dimensions.network([0] * len(costs), weight_format)[0], weight_format)
    to_be_saved = maximal - pick.limit(maximal)
    damage = [table.rows[index] for index in dimensions.searched]
    return solve(damage, costs, [sum(row[0] for row in costs) - to_be_saved])[0]
