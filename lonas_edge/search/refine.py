"""Refinement of the front: one level moved between two groups at nearly equal cost.

The damage table says which moves are promising, which is cheap; each is then evaluated like any other network, and stays in the
front if it beats what was there. EvoPress (Sieberling et al., 2410.14649) finishes with such level switches.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import Dimensions, Network, costs_by_width
from lonas_edge.search.record import Evaluation, front

PATIENCE = 16  # moves in a row that brought nothing, after which there are no more
NEARLY_EQUAL = 0.5  # of a move's own size: what a pair of moves may add to the cost
HOPELESS = 0.1  # of a network's damage: a move that is predicted to add more is not tried


def proposer(
    dimensions: Dimensions, table: DamageTable, cost: Callable[[Sequence[int], str], float], sign: int
) -> Callable[[Sequence[Evaluation], set[Network]], Network | None]:
    """Make the function that proposes the next network to evaluate.

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

    def propose(done: Sequence[Evaluation], taken: set[Network]) -> Network | None:
        best = front(done, sign)
        members = {one.number for one in best}
        tried = [one for one in done if one.origin == "refined"][-PATIENCE:]
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
                return network
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
