"""The refinement: the proposed moves, and its end."""

from collections.abc import Sequence

from lonas_edge.search import proposals
from lonas_edge.search.dimensions import Dimensions, Widths
from lonas_edge.search.picks import Pick
from lonas_edge.search.proposals import front_proposer, pick_proposer
from lonas_edge.search.record import Evaluation
from lonas_edge.space.search_space import Group, Member, SearchSpace

SPACE = SearchSpace(tuple(Group((Member(f"layer{i}", "base", "node"),), (4, 3, 2)) for i in range(3)))
DIMENSIONS = Dimensions(SPACE, (0, 1, 2))
TABLE = ((0.0, 0.1, 0.3), (0.0, 0.4, 0.9), (0.0, 0.2, 0.5))


def cost(widths: tuple[int, ...]) -> float:
    """Every channel costs the same."""
    return float(sum(widths))


def evaluation(number: int, widths: tuple[int, ...], quality: float, origin: str = "nsga2") -> Evaluation:
    """An evaluation of a network."""
    return Evaluation(number, widths, quality, cost(widths), 0.0, origin)


def proposed(done: list[Evaluation]) -> Widths | None:
    """The proposal for the front."""
    proposal = front_proposer(DIMENSIONS, TABLE, cost)(done, {evaluation.widths for evaluation in done})
    assert proposal is None or proposal[1] == "refined"
    return proposal and proposal[0]


def test_the_most_promising_move_comes_first() -> None:
    done = [evaluation(0, (4, 3, 4), 0.4)]
    assert proposed(done) == (3, 4, 4)  # -0.4 + 0.1
    done.append(evaluation(1, (3, 4, 4), 0.5))
    assert proposed(done) == (4, 4, 3)  # -0.4 + 0.2


def test_hopeless_moves_are_not_tried() -> None:
    assert proposed([evaluation(0, (3, 4, 4), 0.1)]) is None  # elsewhere this level costs twice as much


def test_the_end(monkeypatch) -> None:
    monkeypatch.setattr(proposals, "PATIENCE", 2)
    done = [evaluation(0, (4, 3, 4), 0.4), evaluation(1, (3, 4, 4), 0.5, "refined")]
    assert proposed(done)
    done.append(evaluation(2, (2, 4, 4), 0.9, "refined"))  # cheaper: in the front, so the refinement goes on
    assert proposed(done)
    done[2] = evaluation(2, (4, 4, 3), 0.9, "refined")
    assert proposed(done) is None


PICK = Pick("macs<=9", "macs", 9.0)


def of_pick(
    done: list[Evaluation], rows: Sequence[Sequence[float]], center: Sequence[int], dimensions: Dimensions = DIMENSIONS
) -> tuple[Widths, str] | None:
    """The proposal for the pick, with a table measured around `center`."""
    table = tuple(map(tuple, rows))
    propose = pick_proposer(dimensions, {PICK: cost}, lambda _pick, _best: (center, table))
    return propose(done, {evaluation.widths for evaluation in done})


AROUND_333 = ((-0.3, 0.0, 0.2), (-0.1, 0.0, 0.05), (-0.05, 0.0, 0.2))  # of a network at the bound


def test_moves_start_at_the_best_network_of_a_pick() -> None:
    done = [evaluation(0, (4, 4, 4), 0.0), evaluation(1, (3, 3, 3), 0.5), evaluation(2, (3, 3, 2), 0.6)]
    assert of_pick(done, AROUND_333, (3, 3, 3)) == ((4, 2, 3), "refined:macs<=9")  # -0.3 + 0.05
    done.append(evaluation(3, (4, 2, 3), 0.7, "refined:macs<=9"))  # no better
    assert of_pick(done, AROUND_333, (3, 3, 3)) == ((4, 3, 2), "refined:macs<=9")  # -0.3 + 0.2
    done.append(evaluation(4, (4, 3, 2), 0.8, "refined:macs<=9"))
    assert of_pick(done, AROUND_333, (3, 3, 3)) is None, "(3, 2, 4) promises nothing: -0.05 + 0.05"


def test_moved_groups_are_fixed() -> None:
    rows = [[-0.3, 0.0, 0.2], [-0.1, 0.0, 0.05], [-0.2, 0.0, 0.1], [-0.2, 0.0, 0.1]]
    space = SearchSpace(tuple(Group((Member(f"layer{i}", "base", "node"),), (4, 3, 2)) for i in range(4)))
    wider = Dimensions(space, (0, 1, 2, 3))
    done = [evaluation(0, (4, 2, 3, 3), 0.4, "refined:macs<=12")]  # from (3, 3, 3, 3)
    pick = pick_proposer(wider, {Pick("macs<=12", "macs", 12.0): cost}, lambda *_: ((3, 3, 3, 3), tuple(map(tuple, rows))))
    assert pick(done, set()) == ((4, 2, 4, 2), "refined:macs<=12")


def test_several_levels_at_once_and_single_moves() -> None:
    done = [evaluation(0, (4, 3, 2), 0.5)]
    rows = ((0.0, 0.3, 0.6), (-0.1, 0.0, 0.9), (-0.5, -0.3, 0.0))
    assert of_pick(done, rows, (4, 3, 2)) is None, "no move lowers the sensitivity"
    rows = ((0.0, 0.1, 0.15), (-0.1, 0.0, 0.9), (-0.5, -0.3, 0.0))
    assert of_pick(done, rows, (4, 3, 2)) == ((2, 3, 4), "refined:macs<=9")  # -0.5 + 0.15: two levels for two
    rows = ((0.0, -0.2, 0.1), (0.1, 0.0, 0.9), (0.1, 0.1, 0.0))
    assert of_pick(done, rows, (4, 3, 2)) == ((3, 3, 2), "refined:macs<=9"), "cut alone"
    done = [evaluation(0, (4, 2, 2), 0.5)]
    rows = ((0.0, 0.1, 0.2), (-0.3, -0.2, 0.0), (-0.1, -0.1, 0.0))
    assert of_pick(done, rows, (4, 2, 2)) == ((4, 3, 2), "refined:macs<=9"), "there is room for one more"


def test_widths_inside_a_removed_block_are_no_moves() -> None:
    block = Group((Member("layer0", "block", "node"),), (1, 0))
    space = SearchSpace((Group((Member("layer0.mlp", "base", "node"),), (4, 2)), block, SPACE.groups[1]))
    dimensions = Dimensions(space, (0, 1, 2), inside={0: 1})
    done = [evaluation(0, (4, 0, 3), 0.5)]
    rows = ((0.0, -0.9), (0.2, 0.0), (-0.1, 0.0, 0.3))
    assert of_pick(done, rows, (4, 0, 3), dimensions) == ((4, 0, 4), "refined:macs<=9"), "not 4 to 2 in the first"
