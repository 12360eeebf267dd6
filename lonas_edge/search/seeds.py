"""Seeds of a search: maximal, heuristic and minimal, and the knapsack's solutions for the picks and for a ladder of budgets."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import Dimensions, Network, costs_by_width
from lonas_edge.search.knapsack import ladder, solve
from lonas_edge.search.picks import Pick

NAMES = ("maximal", "heuristic", "minimal")
RUNGS = 12


def named(dimensions: Dimensions) -> dict[str, Network]:
    """The networks that every search evaluates, at the first weight format; groups that are not searched at their widest."""
    found = {name: dimensions.space.preset(name) for name in NAMES}
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
        choices = _choices(dimensions, table, bounded, weight_format)
        whole = bounded(dimensions.network([0] * len(dimensions.searched), weight_format)[0], weight_format)
        levels = _solved(choices, [_dearest(choices) - (whole - pick.limit(whole))])[0]
        found.setdefault(dimensions.network(levels, weight_format), f"seed:pick:{pick.expression}")
    rungs = min(RUNGS, evals // (2 * len(dimensions.formats)))
    for weight_format in dimensions.formats:
        choices = _choices(dimensions, table, cost, weight_format)
        budgets = ladder(0.0, _dearest(choices), rungs)
        for budget, levels in zip(budgets, _solved(choices, budgets), strict=True):
            found.setdefault(dimensions.network(levels, weight_format), f"seed:knapsack:{budget / _dearest(choices):.3f}")
    return found


@dataclass(frozen=True)
class _Choice:
    """What is chosen for groups that belong together: places of widths, the damage, and the cost beside the cheapest choice."""

    levels: Mapping[int, int]
    damage: float
    cost: float


def _choices(
    dimensions: Dimensions, table: DamageTable, cost: Callable[[Sequence[int], str], float], weight_format: str
) -> list[list[_Choice]]:
    """For each group its widths; for blocks that hold others, all of theirs or none: what is left out saves once.

    The first choice is the maximal one.
    """
    costs = costs_by_width(dimensions, cost, weight_format)
    damages = [table.rows[index] for index in dimensions.searched]
    places = {index: place for place, index in enumerate(dimensions.searched)}
    held: dict[int, list[int]] = {}
    for group, block in dimensions.inside.items():
        if group in places and block in places:
            held.setdefault(places[block], []).append(places[group])
    alone = set(range(len(costs))) - held.keys() - {place for inner in held.values() for place in inner}
    found = [[_Choice({p: level}, damages[p][level], value) for level, value in enumerate(costs[p])] for p in sorted(alone)]
    for block, inner in held.items():
        kept = []
        for levels in itertools.product(*(range(len(costs[place])) for place in inner)):
            chosen = dict(zip(inner, levels, strict=True))
            saved = sum(costs[place][0] - costs[place][level] for place, level in chosen.items())
            damage = sum(damages[place][level] for place, level in chosen.items())
            kept.append(_Choice({block: 0, **chosen}, damage, costs[block][0] - saved))
        found.append([*kept, _Choice({block: 1, **dict.fromkeys(inner, 0)}, damages[block][1], 0.0)])
    return found


def _dearest(choices: Sequence[Sequence[_Choice]]) -> float:
    """What the maximal network costs beside the cheapest one."""
    return sum(row[0].cost for row in choices)


def _solved(choices: Sequence[Sequence[_Choice]], budgets: Sequence[float]) -> list[list[int]]:
    """The places of the widths of least predicted damage, for each budget."""
    damage, costs = ([[getattr(one, name) for one in row] for row in choices] for name in ("damage", "cost"))
    found = []
    for solution in solve(damage, costs, budgets):
        levels = {p: level for row, chosen in zip(choices, solution, strict=True) for p, level in row[chosen].levels.items()}
        found.append([levels[place] for place in range(len(levels))])
    return found
