"""Pareto front, by its definition; costs in the report of `compress`."""

import random

import pytest

from lonas_edge.search.record import Evaluation, front


def drawn(seed: int, count: int = 60) -> list[Evaluation]:
    """Evaluations with figures on a coarse grid, so that some are equal."""
    draw = random.Random(seed)
    return [Evaluation(n, (n,), draw.randrange(20) / 20, draw.randrange(20), 0.0, "random") for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_front(seed: int) -> None:
    evaluations = drawn(seed)

    def beaten(evaluation: Evaluation) -> bool:
        pair = evaluation.quality, evaluation.cost
        others = [(other.quality, other.cost) for other in evaluations]
        return any(other != pair and other[0] <= pair[0] and other[1] <= pair[1] for other in others)

    expected = {(evaluation.quality, evaluation.cost) for evaluation in evaluations if not beaten(evaluation)}
    members = front(evaluations)
    assert {(member.quality, member.cost) for member in members} == expected
    assert len(members) == len(expected) and [m.cost for m in members] == sorted(m.cost for m in members)
