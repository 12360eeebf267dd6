"""Refinement: widths moved between two groups at a cost that stays, each move evaluated like any other network.

What is picked comes first. How much a group matters depends on what else is cut, above all where attention is left out: sums of
a damage table that was measured in the maximal network say next to nothing of the moves of a network that is cut deeply. So a
table is measured around the best network of each pick, and its moves are tried from the most promising one on; one that is
better is where the next ones begin. Groups that were moved are left alone then: the table is no longer true of them.

Then the front: one level moved between two groups at nearly equal cost, as the first damage table promises. EvoPress finishes
with such level switches (Sieberling et al., 2410.14649).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import Dimensions, Network, costs_by_width
from lonas_edge.search.picks import Pick
from lonas_edge.search.record import Evaluation, front

ORIGIN = "refined"
Cost = Callable[[Sequence[int], str], float]
Proposal = tuple[Network, str]  # a network, and its origin
Around = Callable[[Pick, Evaluation], tuple[Sequence[int], DamageTable]]
PICK_PATIENCE = 8  # moves of a pick in a row that brought nothing, after which there are no more
PATIENCE = 16  # moves in a row that brought nothing, after which there are no more
NEARLY_EQUAL = 0.5  # of a move's own size: what a pair of moves may add to the cost
HOPELESS = 0.1  # of a network's damage: a move that is predicted to add more is not tried


def pick_proposer(
    dimensions: Dimensions, aims: Mapping[Pick, Cost], sign: int, around: Around
) -> Callable[[Sequence[Evaluation], set[Network]], Proposal | None]:
    """Make the function that proposes moves of what is picked.

    Args:
        dimensions: What is searched.
        aims: Picks that bound a cost, each with that cost.
        sign: 1 where a lower quality is better, -1 where a higher one is.
        around: Gives the damage table around a pick's network, and the widths that it was measured around: those of the
            evaluation that it is first asked with, ever.

    Returns:
        As of `proposer`.
    """
    whole = {
        pick: cost(dimensions.network([0] * len(dimensions.searched), "")[0], dimensions.formats[0])
        for pick, cost in aims.items()
    }
    formats = dimensions.formats
    steps = {pick: {one: costs_by_width(dimensions, cost, one) for one in formats} for pick, cost in aims.items()}

    def propose(done: Sequence[Evaluation], taken: set[Network]) -> Proposal | None:
        for pick, cost in aims.items():
            met = [one for one in done if pick.meets(cost(one.widths, one.weight_format), whole[pick])]
            if not met:
                continue
            best, origin = front(met, sign)[-1], f"{ORIGIN}:{pick.expression}"
            if sum(one.origin == origin for one in done[best.number + 1 :]) >= PICK_PATIENCE:
                continue
            centre, table = around(pick, best)
            room = pick.limit(whole[pick]) - cost(best.widths, best.weight_format)
            damages = [table.rows[index] for index in dimensions.searched]
            levels, free = dimensions.levels(best.widths), _free(dimensions, best.widths, centre)
            for _, moved in sorted(_swaps(levels, free, damages, steps[pick][best.weight_format], room)):
                network = dimensions.network(moved, best.weight_format)
                if network not in taken and pick.meets(cost(*network), whole[pick]):
                    return network, origin
        return None

    return propose


def _free(dimensions: Dimensions, widths: Sequence[int], centre: Sequence[int]) -> list[int]:
    """Places of the searched groups that a table around a network is true of: not moved since, and not in a block left out."""
    return [
        place
        for place, index in enumerate(dimensions.searched)
        if widths[index] == centre[index] and (index not in dimensions.inside or widths[dimensions.inside[index]])
    ]


def _swaps(
    levels: Sequence[int],
    free: Sequence[int],
    damages: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    room: float,
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """One group wider, another narrower, or one of both alone: those that promise less damage within the room for more cost."""
    changes = [
        (damages[place][level], costs[place][level] - costs[place][levels[place]], place, level)
        for place in free
        for level in range(len(damages[place]))
        if level != levels[place]
    ]
    nothing = (0.0, 0.0, -1, 0)
    wider = [nothing, *(change for change in changes if change[1] > 0)]
    narrower = [nothing, *(change for change in changes if change[1] <= 0)]
    for first, second in itertools.product(wider, narrower):
        change, added = first[0] + second[0], first[1] + second[1]
        if change < 0 and added <= room and first[2] != second[2]:
            moved = list(levels)
            for _, _, place, level in (first, second):
                if place >= 0:
                    moved[place] = level
            yield change, tuple(moved)


def proposer(
    dimensions: Dimensions, table: DamageTable, cost: Cost, sign: int
) -> Callable[[Sequence[Evaluation], set[Network]], Proposal | None]:
    """Make the function that proposes moves of the front.

    Args:
        dimensions: What is searched.
        table: The damage of each group alone.
        cost: Of a network.
        sign: 1 where a lower quality is better, -1 where a higher one is.

    Returns:
        From what is evaluated and what is taken, the most promising move of a member of the front; None where there is none.
        It depends on nothing else, so that a search that goes on refines the same.
    """
    steps = {weight_format: costs_by_width(dimensions, cost, weight_format) for weight_format in dimensions.formats}
    damages = [table.rows[index] for index in dimensions.searched]

    def propose(done: Sequence[Evaluation], taken: set[Network]) -> Proposal | None:
        best = front(done, sign)
        members = {one.number for one in best}
        tried = [one for one in done if one.origin == ORIGIN][-PATIENCE:]
        if len(tried) == PATIENCE and not any(one.number in members for one in tried):
            return None
        moves = []
        for member in best:
            levels = dimensions.levels(member.widths)
            for change, moved in _moves(levels, damages, steps[member.weight_format]):
                moves.append((change, member.number, moved, member.weight_format))
        for _, _, moved, weight_format in sorted(moves):
            network = dimensions.network(moved, weight_format)
            if network not in taken:
                return network, ORIGIN
        return None

    return propose


def _moves(
    levels: list[int], damages: Sequence[Sequence[float]], costs: Sequence[Sequence[float]]
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Pairs of one level wider here and one narrower there: the predicted change of damage, and the levels."""
    places = range(len(levels))
    total = sum(row[level] for row, level in zip(damages, levels, strict=True))
    wider = [_change(damages, levels, place, -1) for place in places]
    narrower = [_change(damages, levels, place, 1) for place in places]
    dearer = [_change(costs, levels, place, -1) for place in places]
    cheaper = [_change(costs, levels, place, 1) for place in places]
    change = np.add.outer(wider, narrower)
    added = np.add.outer(dearer, cheaper)
    size = np.abs(np.asarray(dearer))[:, None]
    good = (change <= HOPELESS * total) & (np.abs(added) <= NEARLY_EQUAL * size) & ~np.eye(len(levels), dtype=bool)
    for first, second in np.argwhere(good):
        moved = list(levels)
        moved[first] -= 1
        moved[second] += 1
        yield float(change[first, second]), tuple(moved)


def _change(rows: Sequence[Sequence[float]], levels: Sequence[int], place: int, by: int) -> float:
    """What a step of one group changes; infinite where there is no such level."""
    row, level = rows[place], levels[place]
    return row[level + by] - row[level] if 0 <= level + by < len(row) else float("inf")
