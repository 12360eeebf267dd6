"""The refinement: which move is proposed, and when there are no more."""

from lonas_edge.search import refine
from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import Dimensions, Network
from lonas_edge.search.record import Evaluation
from lonas_edge.search.refine import proposer
from lonas_edge.space.search_space import Group, Member, SearchSpace

SPACE = SearchSpace(tuple(Group((Member(f"layer{i}", "base", "node"),), (4, 3, 2)) for i in range(3)))
DIMENSIONS = Dimensions(SPACE, (0, 1, 2), ("int8",))
TABLE = DamageTable(((0.0, 0.1, 0.3), (0.0, 0.4, 0.9), (0.0, 0.2, 0.5)))


def cost(widths: tuple[int, ...], _format: str) -> float:
    """Every channel costs the same."""
    return float(sum(widths))


def evaluation(number: int, widths: tuple[int, ...], quality: float, origin: str = "nsga2") -> Evaluation:
    """An evaluation of a network."""
    return Evaluation(number, widths, "int8", quality, cost(widths, "int8"), 0.0, origin)


def proposed(done: list[Evaluation]) -> Network | None:
    """What is proposed when nothing else is under way."""
    return proposer(DIMENSIONS, TABLE, cost, 1)(done, {(one.widths, "int8") for one in done})


def test_the_most_promising_move_comes_first() -> None:
    done = [evaluation(0, (4, 3, 4), 0.4)]
    assert proposed(done) == ((3, 4, 4), "int8")  # -0.4 + 0.1
    done.append(evaluation(1, (3, 4, 4), 0.5))
    assert proposed(done) == ((4, 4, 3), "int8")  # -0.4 + 0.2


def test_a_move_keeps_the_cost() -> None:
    done = [evaluation(0, (4, 2, 4), 0.9)]
    for number in range(1, 5):
        found = proposed(done)
        if found is None:
            break
        assert cost(*found) == 10
        done.append(evaluation(number, found[0], 0.5))
    assert len(done) > 2


def test_hopeless_moves_are_not_tried() -> None:
    assert proposed([evaluation(0, (3, 4, 4), 0.1)]) is None  # any other place for this level costs twice as much


def test_the_end(monkeypatch) -> None:
    monkeypatch.setattr(refine, "PATIENCE", 2)
    done = [evaluation(0, (4, 3, 4), 0.4), evaluation(1, (3, 4, 4), 0.5, "refined")]
    assert proposed(done)
    done.append(evaluation(2, (2, 4, 4), 0.9, "refined"))  # cheaper: in the front, so the refinement goes on
    assert proposed(done)
    done[2] = evaluation(2, (4, 4, 3), 0.9, "refined")
    assert proposed(done) is None
