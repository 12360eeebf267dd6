"""Greedy removal of blocks: remove the one that costs least in the network without those already removed.

The cost of a block depends on what else is removed, so each step evaluates networks as they are. Costs rarely fall when more
blocks are removed. So only the block that was cheapest when it was last measured is evaluated again (lazy greedy, Minoux 1978).
"""

from collections.abc import Callable, Sequence

from lonas_edge.search.dimensions import Dimensions, Widths
from lonas_edge.search.record import Evaluation
from lonas_edge.search.refine import Proposal, Propose
from lonas_edge.search.sensitivity import SensitivityTable

ORIGIN = "greedy"


def greedy_proposer(dimensions: Dimensions, table: SensitivityTable, met: Callable[[Widths, float], bool]) -> Propose:
    """Make the function that proposes the next network of a greedy removal.

    Args:
        dimensions: The dimensions of the search: blocks alone.
        table: The KL of each block removed alone.
        met: Whether a network is small enough, or its quality bad enough, so that the removal ends.
    """
    alone = {dim: table.rows[index][1] for dim, index in enumerate(dimensions.searched)}

    def without(removed: Sequence[int]) -> Widths:
        return dimensions.widths([int(dim in removed) for dim in alone])

    def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> Proposal | None:
        quality = {evaluation.widths: evaluation.quality for evaluation in evaluations}
        costs, removed = dict(alone), list[int]()
        while costs and without(removed) in quality and not met(without(removed), quality[without(removed)]):
            candidates = {dim: without([*removed, dim]) for dim in costs}
            measured = [dim for dim, widths in candidates.items() if widths in quality]
            costs.update({dim: quality[candidates[dim]] - quality[without(removed)] for dim in measured})
            best = min(costs, key=costs.__getitem__)
            if best in measured:
                removed.append(best)
                del costs[best]
                continue
            unknown = [dim for dim in sorted(costs, key=costs.__getitem__) if candidates[dim] not in known]
            return (candidates[unknown[0]], ORIGIN) if unknown else None  # else other workers evaluate all of them
        return None

    return propose
