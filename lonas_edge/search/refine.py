"""Refinement: move widths between two groups at nearly the same cost; each move is evaluated like any other network.

Picks come first. The sensitivity of a group depends on what else is removed, above all among attention blocks: a table of the
maximal network predicts little for a network with many cuts. So a table is measured around the best network of each pick, and
its most promising moves are tried first. A better network becomes the new start; groups that moved are then fixed, because the
table no longer holds for them.

The front comes next: one level moves between two groups, as the first table predicts. EvoPress finishes with such level
switches (Sieberling et al., 2410.14649).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lonas_edge.search.dimensions import Cost, Dimensions, Widths, costs_by_width
from lonas_edge.search.picks import Pick
from lonas_edge.search.record import Evaluation, front
from lonas_edge.search.sensitivity import SensitivityTable

ORIGIN = "refined"
Proposal = tuple[Widths, str]  # a network and its origin
Propose = Callable[[Sequence[Evaluation], set[Widths]], Proposal | None]  # from the evaluations and all known networks
Around = Callable[[Pick, Evaluation], tuple[Sequence[int], SensitivityTable]]
PICK_PATIENCE = 8  # moves of a pick without a gain, after which it is finished
PATIENCE = 16  # the same for moves of the front
NEARLY_EQUAL = 0.5  # largest cost that a pair of moves may add, as a share of one move
HOPELESS = 0.1  # largest predicted increase of a network's total sensitivity


def pick_proposer(dimensions: Dimensions, aims: Mapping[Pick, Cost], around: Around) -> Propose:
    """Make the function that proposes moves of the picks' networks.

    Args:
        dimensions: The dimensions of the search.
        aims: Picks that bound a cost, each with that cost.
        around: Gives the sensitivity table of a pick, and the widths that it was measured around.
    """
    largest = {pick: cost(dimensions.maximal) for pick, cost in aims.items()}
    costs = {pick: costs_by_width(dimensions, cost) for pick, cost in aims.items()}

    def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> Proposal | None:
        for pick, cost in aims.items():
            met = [evaluation for evaluation in evaluations if pick.meets(cost(evaluation.widths), largest[pick])]
            if not met:
                continue
            best, origin = front(met)[-1], f"{ORIGIN}:{pick.expression}"
            if sum(later.origin == origin for later in evaluations[best.number + 1 :]) >= PICK_PATIENCE:
                continue
            center, table = around(pick, best)
            room = pick.limit(largest[pick]) - cost(best.widths)
            rows = [table.rows[index] for index in dimensions.searched]
            levels, free = dimensions.levels(best.widths), _free(dimensions, best.widths, center)
            for _, moved in sorted(_swaps(levels, free, rows, costs[pick], room)):
                widths = dimensions.widths(moved)
                if widths not in known and pick.meets(cost(widths), largest[pick]):
                    return widths, origin
        return None

    return propose


def _free(dimensions: Dimensions, widths: Sequence[int], center: Sequence[int]) -> list[int]:
    """List the searched groups for which the table holds: not moved since, and not in a removed block."""
    return [
        dim
        for dim, index in enumerate(dimensions.searched)
        if widths[index] == center[index] and (index not in dimensions.inside or widths[dimensions.inside[index]])
    ]


def _swaps(
    levels: Sequence[int], free: Sequence[int], rows: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], room: float
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Widen one group, narrow another, or either alone, if that lowers the sensitivity and adds at most `room` to the cost."""
    changes = [
        (rows[dim][level], costs[dim][level] - costs[dim][levels[dim]], dim, level)
        for dim in free
        for level in range(len(rows[dim]))
        if level != levels[dim]
    ]
    nothing = (0.0, 0.0, -1, 0)
    wider = [nothing, *(change for change in changes if change[1] > 0)]
    narrower = [nothing, *(change for change in changes if change[1] <= 0)]
    for first, second in itertools.product(wider, narrower):
        change, added = first[0] + second[0], first[1] + second[1]
        if change < 0 and added <= room and first[2] != second[2]:
            moved = list(levels)
            for _, _, dim, level in (first, second):
                if dim >= 0:
                    moved[dim] = level
            yield change, tuple(moved)


def front_proposer(dimensions: Dimensions, table: SensitivityTable, cost: Cost) -> Propose:
    """Make the function that proposes the most promising move of a member of the front."""
    costs = costs_by_width(dimensions, cost)
    rows = [table.rows[index] for index in dimensions.searched]

    def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> Proposal | None:
        best = front(evaluations)
        members = {member.number for member in best}
        tried = [evaluation for evaluation in evaluations if evaluation.origin == ORIGIN][-PATIENCE:]
        if len(tried) == PATIENCE and not any(evaluation.number in members for evaluation in tried):
            return None
        moves = [
            (change, member.number, moved)
            for member in best
            for change, moved in _moves(dimensions.levels(member.widths), rows, costs)
        ]
        for _, _, moved in sorted(moves):
            widths = dimensions.widths(moved)
            if widths not in known:
                return widths, ORIGIN
        return None

    return propose


def _moves(
    levels: list[int], rows: Sequence[Sequence[float]], costs: Sequence[Sequence[float]]
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yield pairs of one level wider and one narrower: the predicted change of the sensitivity, and the levels."""
    dims = range(len(levels))
    total = sum(row[level] for row, level in zip(rows, levels, strict=True))
    wider = [_change(rows, levels, dim, -1) for dim in dims]
    narrower = [_change(rows, levels, dim, 1) for dim in dims]
    spent = [_change(costs, levels, dim, -1) for dim in dims]
    saved = [_change(costs, levels, dim, 1) for dim in dims]
    change = np.add.outer(wider, narrower)
    added = np.add.outer(spent, saved)
    size = np.abs(np.asarray(spent))[:, None]
    good = (change <= HOPELESS * total) & (np.abs(added) <= NEARLY_EQUAL * size) & ~np.eye(len(levels), dtype=bool)
    for first, second in np.argwhere(good):
        moved = list(levels)
        moved[first] -= 1
        moved[second] += 1
        yield float(change[first, second]), tuple(moved)


def _change(rows: Sequence[Sequence[float]], levels: Sequence[int], dim: int, by: int) -> float:
    """Compute the change of a figure with a step of one group; infinite if the group has no such level."""
    row, level = rows[dim], levels[dim]
    return row[level + by] - row[level] if 0 <= level + by < len(row) else float("inf")
