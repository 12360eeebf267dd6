"""Proposals of networks: a warm start before the first evaluation, then a greedy removal of blocks or moves of good networks.

Warm start: maximal, heuristic and minimal, then knapsack solutions for the picks and for a ladder of budgets.

Greedy removal: remove the block, or narrow the width by one level, that loses least for what it saves, in the network as it is.
Losses rarely fall when more is removed. So only the step that was best when it was last measured is evaluated again (lazy
greedy, Minoux 1978). Where the best one is beyond a bound, others may still fit.

Refinement: move widths between two groups at nearly the same cost. Picks come first. The table of the maximal network predicts
little for a network with many cuts, so a table is measured around the best network of each pick, and its most promising moves
are tried first. Groups that moved are then fixed, because the table no longer holds for them. The front comes next: one level
moves between two groups, as the first table predicts. EvoPress finishes with such switches (Sieberling et al., 2410.14649).
"""

import ctypes
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType

import numpy as np
from scipy.linalg import block_diag
from scipy.optimize import Bounds, LinearConstraint, milp

from lonas_edge.search.cost import CostFunction
from lonas_edge.search.dimensions import Dimensions, Sensitivity, Widths
from lonas_edge.search.picks import Pick
from lonas_edge.search.record import Evaluation, front

REFINED = "refined"
Proposal = tuple[Widths, str]  # a network and its origin
Propose = Callable[[Sequence[Evaluation], set[Widths]], Proposal | None]  # from the evaluations and all known networks
Around = Callable[[Pick, Evaluation], tuple[Sequence[int], Sensitivity]]
RUNGS = 12  # budgets of the warm start
GRID = 10_080  # steps of a cost between the cheapest and the most expensive network; chosen for its many divisors
PICK_PATIENCE = 8  # moves of a pick without a gain, after which it is finished
PATIENCE = 16  # the same for moves of the front
NEARLY_EQUAL = 0.5  # largest cost that a pair of moves may add, as a share of one move
HOPELESS = 0.1  # largest predicted increase of a network's total sensitivity


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
    inside, origins = dimensions.blocks, named_origins(dimensions)
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
    cheapest = [0.0 if index in inside else min(row) for index, row in enumerate(cost)]
    most = sum(max(row) for index, row in enumerate(cost) if index not in inside)
    unit = (most - sum(cheapest)) / GRID or 1.0
    steps = [math.ceil((value - low) / unit - 1e-6) for row, low in zip(cost, cheapest, strict=True) for value in row]
    room = max(math.floor((budget - sum(cheapest)) / unit + 1e-6), 0)
    one_each = block_diag(*[np.ones((1, len(row))) for row in cost])  # a line per row, a variable per column
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(np.array([steps]), -np.inf, room)]
    for group, block in inside.items():
        kept = one_each[group].copy()  # its narrower columns, if any, need the first column of the block
        kept[kept.argmax()] = 0
        kept[one_each[block].argmax()] = -1
        constraints.append(LinearConstraint(kept, -np.inf, 0))
    objective = np.concatenate([np.asarray(row, float) for row in sensitivity])
    with _silent_output():
        solved = milp(objective, integrality=1, bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0})
    return [int(solved.x[line > 0].argmax()) for line in one_each]


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


def greedy_proposer(
    dimensions: Dimensions,
    table: Sensitivity,
    cost: CostFunction,
    bounds: Sequence[float],
    small: Callable[[Widths], bool],
    last_first: bool = False,
) -> Propose:
    """Make the function that proposes the next network of a greedy removal.

    Args:
        dimensions: The dimensions of the search.
        table: The sensitivity table.
        cost: The searched cost, of which each step saves a part.
        bounds: Bounds on the quality. Steps that fit under the lowest one are taken first, then those under the next.
        small: Whether a network is small enough for the bounds on costs, so that the removal ends.
        last_first: Whether the last group is always removed first, whatever it loses.
    """

    rows, costs, network = [table[index] for index in dimensions.searched], dimensions.costs(cost), cache(dimensions.widths)

    def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> Proposal | None:
        quality = {evaluation.widths: evaluation.quality for evaluation in evaluations}
        removal = _Removal(rows, costs, dimensions.blocks, network)
        for bound in (*sorted(bounds), math.inf):
            while (now := removal.network()) in quality and not (bound == math.inf and small(now)):
                networks, losses = {dim: removal.network(dim) for dim in removal.losses}, removal.losses
                losses |= {dim: quality[widths] - quality[now] for dim, widths in networks.items() if widths in quality}
                offered = [max(losses)] if last_first and losses else losses
                fitting = sorted((dim for dim in offered if quality[now] + losses[dim] <= bound), key=removal.price)
                if not fitting:
                    break
                if networks[fitting[0]] not in quality:
                    unknown = [dim for dim in fitting if networks[dim] not in known]
                    return (networks[unknown[0]], "greedy") if unknown else None  # else other workers evaluate all of them
                removal.take(fitting[0])
        return None

    return propose


class _Removal:
    """A network of a greedy removal, and what the next step of each group loses and saves: a block less, or a width narrower.

    Attributes:
        losses: By dimension, in nats: measured, or of the group alone.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[float]],
        costs: Sequence[Sequence[float]],
        blocks: Mapping[int, int],
        widths: Callable[[tuple[int, ...]], Widths],
    ):
        """Start with the maximal network. Rows and costs have a figure per level of each dimension."""
        self._rows, self._costs, self._blocks, self._widths = rows, costs, blocks, widths
        self._levels = [0] * len(rows)
        self.losses: dict[int, float] = {}
        self._saved: dict[int, float] = {}
        self._next: dict[int, int] = {}
        for dim in range(len(self._rows)):
            self._offer(dim)

    def network(self, dim: int | None = None) -> Widths:
        """The widths now, or after a step of a dimension."""
        return self._widths(tuple(self._next[dim] if index == dim else level for index, level in enumerate(self._levels)))

    def price(self, dim: int) -> float:
        """What a step loses for each millisecond that it saves."""
        loss, saved = self.losses[dim], self._saved[dim]
        return loss / saved if loss > 0 else loss * saved

    def take(self, dim: int) -> None:
        """Take a step. A narrower width leaves its block less to lose and to save; in a removed one it changes nothing."""
        block = self._blocks.get(dim)
        if block in self.losses:
            self.losses[block] = max(self.losses[block] - self.losses[dim], 0.0)
            self._saved[block] -= self._saved[dim]
            if self._saved[block] <= 0:
                del self.losses[block]
        self._levels[dim] = self._next[dim]
        del self.losses[dim]
        self._offer(dim)

    def _offer(self, dim: int) -> None:
        """Offer the next step of a dimension that saves something, if there is one."""
        level, row, costs = self._levels[dim], self._rows[dim], self._costs[dim]
        cheaper = next((later for later in range(level + 1, len(row)) if costs[later] < costs[level]), None)
        if cheaper is not None:
            self._next[dim] = cheaper
            self.losses[dim], self._saved[dim] = row[cheaper] - row[level], costs[level] - costs[cheaper]


def pick_proposer(dimensions: Dimensions, aims: Mapping[Pick, CostFunction], around: Around) -> Propose:
    """Make the function that proposes moves of the picks' networks.

    Args:
        dimensions: The dimensions of the search.
        aims: Picks that bound a cost, each with that cost.
        around: Gives the sensitivity table of a pick, and the widths that it was measured around.
    """
    largest = {pick: cost(dimensions.maximal) for pick, cost in aims.items()}
    costs = {pick: dimensions.costs(cost) for pick, cost in aims.items()}

    def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> Proposal | None:
        for pick, cost in aims.items():
            met = [evaluation for evaluation in evaluations if pick.meets(cost(evaluation.widths), largest[pick])]
            if not met:
                continue
            best, origin = front(met)[-1], f"{REFINED}:{pick.expression}"
            if sum(later.origin == origin for later in evaluations[best.number + 1 :]) >= PICK_PATIENCE:
                continue
            center, table = around(pick, best)
            room = pick.limit(largest[pick]) - cost(best.widths)
            rows = [table[index] for index in dimensions.searched]
            levels, free = dimensions.levels(best.widths), list[int]()
            for dim, index in enumerate(dimensions.searched):
                block = dimensions.inside.get(index)
                if best.widths[index] == center[index] and (block is None or best.widths[block]):
                    free.append(dim)  # not moved since the table was measured, and not in a removed block
            for _, moved in sorted(_swaps(levels, free, rows, costs[pick], room)):
                widths = dimensions.widths(moved)
                if widths not in known and pick.meets(cost(widths), largest[pick]):
                    return widths, origin
        return None

    return propose


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


def front_proposer(dimensions: Dimensions, table: Sensitivity, cost: CostFunction) -> Propose:
    """Make the function that proposes the most promising move of a member of the front."""
    costs = dimensions.costs(cost)
    rows = [table[index] for index in dimensions.searched]

    def propose(evaluations: Sequence[Evaluation], known: set[Widths]) -> Proposal | None:
        best = front(evaluations)
        members = {member.number for member in best}
        tried = [evaluation for evaluation in evaluations if evaluation.origin == REFINED][-PATIENCE:]
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
                return widths, REFINED
        return None

    return propose


def _moves(
    levels: list[int], rows: Sequence[Sequence[float]], costs: Sequence[Sequence[float]]
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yield pairs of one level wider and one narrower: the predicted change of the sensitivity, and the levels."""
    total = sum(row[level] for row, level in zip(rows, levels, strict=True))
    spent = _change(costs, levels, -1)
    change = np.add.outer(_change(rows, levels, -1), _change(rows, levels, 1))
    added = np.add.outer(spent, _change(costs, levels, 1))
    size = np.abs(np.asarray(spent))[:, None]
    good = (change <= HOPELESS * total) & (np.abs(added) <= NEARLY_EQUAL * size) & ~np.eye(len(levels), dtype=bool)
    for first, second in np.argwhere(good):
        moved = list(levels)
        moved[first] -= 1
        moved[second] += 1
        yield float(change[first, second]), tuple(moved)


def _change(rows: Sequence[Sequence[float]], levels: Sequence[int], by: int) -> list[float]:
    """Compute the change of each group's figure with a step of its level; infinite if the group has no such level."""
    changes = []
    for row, level in zip(rows, levels, strict=True):
        changes.append(row[level + by] - row[level] if 0 <= level + by < len(row) else float("inf"))
    return changes
