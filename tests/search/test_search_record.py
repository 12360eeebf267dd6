"""Pareto front and hypervolume, by their definitions."""

import random

import pytest

from lonas_edge.search.record import Evaluation, front, hypervolume


def drawn(seed: int, count: int = 60) -> list[Evaluation]:
    """Evaluations with figures on a coarse grid, so that some are equal."""
    draw = random.Random(seed)
    return [Evaluation(n, (n,), draw.randrange(20) / 20, draw.randrange(20), 0.0, "random") for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sign", [1, -1])
def test_front(seed: int, sign: int) -> None:
    found = drawn(seed)

    def beaten(one: Evaluation) -> bool:
        pair = sign * one.quality, one.cost
        others = [(sign * o.quality, o.cost) for o in found]
        return any(o != pair and o[0] <= pair[0] and o[1] <= pair[1] for o in others)

    expected = {(one.quality, one.cost) for one in found if not beaten(one)}
    members = front(found, sign)
    assert {(one.quality, one.cost) for one in members} == expected
    assert len(members) == len(expected) and [m.cost for m in members] == sorted(m.cost for m in members)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_counts_cells(seed: int) -> None:
    points = [(round(one.quality * 20), int(one.cost)) for one in drawn(seed, 25)]
    ideal, reference = (0, 2), (15, 17)
    shares = hypervolume(points, ideal, reference)
    for count, share in enumerate(shares, 1):
        cells = {
            (x, y)
            for x in range(reference[0])
            for y in range(reference[1])
            if any(q <= x and c <= y for q, c in points[:count])
        }
        assert share * 15 * 15 == pytest.approx(len(cells))


def test_hypervolume_of_nothing_between() -> None:
    assert hypervolume([(0.0, 1.0)], (0.0, 1.0), (0.0, 1.0)) == [0.0]
