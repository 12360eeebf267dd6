"""Greedy removal: the path of an exhaustive greedy search, with fewer evaluations."""

import itertools
from collections.abc import Callable

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
