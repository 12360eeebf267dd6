"""Greedy removal: the path of an exhaustive greedy search, with fewer evaluations."""

import itertools
from collections.abc import Callable, Sequence

import pytest

from lonas_edge.search.dimensions import Dimensions, Widths
from lonas_edge.search.proposals import Propose, greedy_proposer
from lonas_edge.search.record import Evaluation
from lonas_edge.space.search_space import BLOCK_WIDTHS, Group, Member, SearchSpace

ALONE = (3.0, 0.3, 0.1, 0.2, 0.5)
PAIRS = {(1, 2): 0.9, (2, 3): 0.05, (3, 4): 0.6}  # what two blocks cost more together
SPACE = SearchSpace(tuple(Group((Member(f"{i}", "block", f"{i}"),), BLOCK_WIDTHS) for i in range(5)))
DIMENSIONS = Dimensions(SPACE, tuple(range(5)))
TABLE = tuple((0.0, loss) for loss in ALONE)
SAVED = (9.0, 1.0, 1.0, 4.0, 1.0)  # by removing a block: a cost
EQUAL = (1.0,) * 5


def quality(removed: tuple[int, ...]) -> float:
    pairs = sum(PAIRS.get(pair, 0.0) for pair in itertools.combinations(sorted(removed), 2))
    return sum(ALONE[block] for block in removed) + pairs


def removed_of(widths: Widths) -> tuple[int, ...]:
    return tuple(index for index, width in enumerate(widths) if not width)


def proposals(count: int, saved: tuple[float, ...]) -> list[tuple[int, ...]]:
    """The removed blocks of each proposed network, until `count` are removed."""
    return path(greedy_proposer(DIMENSIONS, TABLE, cost_of(saved), (), lambda widths: len(removed_of(widths)) >= count))


def path(propose: Propose) -> list[tuple[int, ...]]:
    """The removed blocks of each network that is proposed and evaluated."""
    networks: list[Widths] = [DIMENSIONS.maximal]
    while proposal := propose([_evaluation(*each) for each in enumerate(networks)], set(networks)):
        assert proposal[1] == "greedy"
        networks.append(proposal[0])
    return [removed_of(widths) for widths in networks[1:]]


def cost_of(saved: tuple[float, ...]) -> Callable[[Widths], float]:
    return lambda widths: 20.0 - sum(saved[block] for block in removed_of(widths))


def _evaluation(number: int, widths: Widths) -> Evaluation:
    return Evaluation(number, widths, quality(removed_of(widths)), 0.0, 0.0, "")


@pytest.mark.parametrize("saved", [EQUAL, SAVED])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_path_is_that_of_all_evaluations(count: int, saved: tuple[float, ...]) -> None:
    """Each step removes the block that loses least for what it saves."""
    expected: tuple[int, ...] = ()
    for _ in range(count):
        rest = [block for block in range(5) if block not in expected]
        lost = {block: quality((*expected, block)) - quality(expected) for block in rest}
        expected = (*expected, min(rest, key=lambda block: lost[block] / saved[block]))
    networks = proposals(count, saved)
    assert networks[-1] == tuple(sorted(expected))
    assert len(networks) == len(set(networks)) < 5 * count or count == 1


WIDTHS = (8, 6, 4, 2)


def test_widths_and_blocks_in_one_path() -> None:
    """Each step removes a block or narrows a width by a level, whichever loses least for what it saves."""
    names = ("a", "a.mlp", "b", "b.mlp")
    groups = [Group((Member(f"{name}.up", "base", f"{name}.up"),), WIDTHS) for name in names[1::2]]
    groups += [Group((Member(name, "block", name),), BLOCK_WIDTHS) for name in names]
    space = SearchSpace(tuple(groups))  # widths of two MLPs; two attention blocks, and the MLPs as blocks: 3 and 5

    def canonical(widths: Sequence[int]) -> Widths:
        return (widths[0] if widths[3] else 8, widths[1] if widths[5] else 8, *widths[2:])

    dimensions = Dimensions(space, tuple(range(6)), canonical, {0: 3, 1: 5})
    narrow = {8: 0.0, 6: 0.1, 4: 0.2, 2: 0.9}

    def mlps(widths: Widths) -> list[tuple[int, int, float]]:  # width, whether it is there, weight
        return [(widths[0], widths[3], 1.0), (widths[1], widths[5], 0.6)]

    def quality(widths: Widths) -> float:
        first, second = (weight * (narrow[width] if kept else 0.8) for width, kept, weight in mlps(widths))
        attention = 0.3 * (not widths[2]) + 0.15 * (not widths[4])
        return first + second + attention + 0.5 * first * second + 0.1 * (attention > 0.5)

    def cost(widths: Widths) -> float:
        return sum(0.5 * width + 3 for width, kept, _ in mlps(widths) if kept) + 2.0 * widths[2] + 2.0 * widths[4]

    def alone(dim: int, level: int) -> float:
        return quality(dimensions.widths([level if index == dim else 0 for index in range(6)]))

    table = [[alone(dim, level) for level in range(count)] for dim, count in enumerate(dimensions.levels_of_groups)]
    expected, levels = [], [0] * 6
    for _ in range(6):
        now, steps = dimensions.widths(levels), {}
        for dim, count in enumerate(dimensions.levels_of_groups):
            inside_removed = dim in (0, 1) and not now[{0: 3, 1: 5}[dim]]
            if levels[dim] + 1 < count and not inside_removed:
                after = dimensions.widths([level + (index == dim) for index, level in enumerate(levels)])
                steps[dim] = (quality(after) - quality(now)) / (cost(now) - cost(after))
        best = min(steps, key=lambda dim: steps[dim])
        levels[best] += 1
        expected.append(dimensions.widths(levels))
    assert expected[2:4] == [(8, 8, 1, 1, 1, 0), (8, 8, 1, 1, 0, 0)]  # the narrowed MLP, then its attention

    limit = cost(expected[-1])
    propose = greedy_proposer(dimensions, table, cost, (), lambda widths: cost(widths) <= limit)
    networks = [dimensions.maximal]
    while proposal := propose(
        [Evaluation(i, each, quality(each), 0.0, 0.0, "") for i, each in enumerate(networks)], set(networks)
    ):
        networks.append(proposal[0])
    assert networks[-1] == expected[-1] and set(expected) <= set(networks)
    assert len(networks) < 12


def test_a_width_that_saves_nothing_is_skipped() -> None:
    """The next narrower one that does is offered; a block that its widths leave nothing to save is not."""
    space = SearchSpace((Group((Member("up", "base", "up"),), (8, 6, 4)), Group((Member("b", "block", "b"),), BLOCK_WIDTHS)))
    dimensions = Dimensions(space, (0, 1), tuple, {0: 1})
    saved = {(8, 1): 0.0, (6, 1): -0.5, (4, 1): 2.0, (8, 0): 2.0, (6, 0): 2.0, (4, 0): 2.0}
    table = [[0.0, 0.1, 0.2], [0.0, 5.0]]
    propose = greedy_proposer(dimensions, table, lambda widths: 9 - saved[tuple(widths)], (), lambda _: False)
    first = Evaluation(0, (8, 1), 0.0, 0.0, 0.0, "")
    proposal = propose([first], {(8, 1)})
    assert proposal and proposal[0] == (4, 1)
    assert propose([first, Evaluation(1, (4, 1), 0.2, 0.0, 0.0, "")], {(8, 1), (4, 1)}) is None


def test_ends_where_the_quality_is_out_of_bounds() -> None:
    """2 fits (0.1); then 3 is tried (0.35 in all), and nothing else fits. The second bound admits 3, and no other."""
    assert path(greedy_proposer(DIMENSIONS, TABLE, cost_of(EQUAL), (0.32,), lambda _: True)) == [(2,), (2, 3)]
    found = path(greedy_proposer(DIMENSIONS, TABLE, cost_of(EQUAL), (0.6, 0.32), lambda _: True))
    assert found[:2] == [(2,), (2, 3)] and not any(1 in removed for removed in found)


def test_a_block_beyond_the_bound_leaves_room_for_others() -> None:
    """Block 0 saves most for its loss, 3.0, but only others fit under 0.35: 2 and 3."""
    saved = (90.0, 1.0, 1.0, 4.0, 1.0)
    assert path(greedy_proposer(DIMENSIONS, TABLE, cost_of(saved), (0.36,), lambda _: True))[-1] == (2, 3)


def test_blocks_that_save_nothing_stay() -> None:
    """Also where their loss is below 0 by noise; of other blocks, that comes before any loss."""
    table = ((0.0, -0.1), (0.0, -0.01), (0.0, 0.1), (0.0, 0.2), (0.0, 0.5))
    saved = (-1.0, 2.0, 5.0, 0.0, 1.0)
    propose = greedy_proposer(DIMENSIONS, table, cost_of(saved), (), lambda _: False)
    first = propose([Evaluation(0, DIMENSIONS.maximal, 0.0, 0.0, 0.0, "")], {DIMENSIONS.maximal})
    assert first and removed_of(first[0]) == (1,)
    assert not any({0, 3} & set(removed) for removed in path(propose))


def test_the_last_one_first() -> None:
    """Whatever it loses; a bound on the quality ends the removal there: 4 and 3 together lose 1.3."""
    assert path(greedy_proposer(DIMENSIONS, TABLE, cost_of(SAVED), (), lambda widths: len(removed_of(widths)) >= 3, True)) == [
        (4,),
        (3, 4),
        (2, 3, 4),
    ]
    assert path(greedy_proposer(DIMENSIONS, TABLE, cost_of(SAVED), (1.0,), lambda _: True, True)) == [(4,), (3, 4)]
