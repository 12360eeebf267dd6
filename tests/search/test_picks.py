"""Picks: parsed and resolved."""

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search.picks import Pick, parse_picks, resolve_picks
from lonas_edge.search.record import Evaluation


def evaluation(number: int, quality: float, cost: float) -> Evaluation:
    """An evaluation with these figures."""
    return Evaluation(number, (number,), quality, cost, 0.0, "random")


EVALUATIONS = [evaluation(0, 0.0, 100.0), evaluation(1, 0.3, 80.0), evaluation(2, 0.2, 81.0), evaluation(3, 0.9, 50.0)]
COSTS = {"macs": lambda widths: EVALUATIONS[widths[0]].cost}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs<=1.43e12", Pick("macs<=1.43e12", "macs", 1.43e12)),
        (" tpot <= 0.85x ", Pick("tpot <= 0.85x", "tpot", 0.85, True)),
        ("end-to-end<=0.7x", Pick("end-to-end<=0.7x", "end-to-end", 0.7, True)),
        ("KL<=.05", Pick("KL<=.05", "kl", 0.05)),
        ("tpot=0.85x", Pick("tpot<=0.85x", "tpot", 0.85, True)),  # needs no quotes in a shell
    ],
)
def test_parsed(text: str, expected: Pick) -> None:
    assert parse_picks([text], ["macs", "tpot", "end-to-end", "kl"]) == [expected]


def test_all_problems_are_listed() -> None:
    with pytest.raises(LonasEdgeError) as refused:
        parse_picks(["kl>=3", "macs", "watts<=3"], ["macs", "kl"])
    assert str(refused.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("text", "number"),
    [("macs<=81", 2), ("macs<=80.5", 1), ("macs<=0.81x", 2), ("macs<=0.5x", 3), ("kl<=0.25", 2), ("kl<=0.3", 1), ("kl<=5", 3)],
)
def test_resolved(text: str, number: int) -> None:
    picks = parse_picks([text], ["kl", "macs"])
    [named], missed = resolve_picks(picks, EVALUATIONS, COSTS, (0,))
    assert (named.evaluation, named.name, missed) == (number, f"pick:{text}", [])


def test_the_closest_is_named() -> None:
    networks, [missed] = resolve_picks(parse_picks(["macs<=0.4x"], ["macs"]), EVALUATIONS, COSTS, (0,))
    assert not networks and missed.startswith("No network meets macs<=0.4x; the closest is 0.5x (evaluation 3).")


def test_names_of_files() -> None:
    bounds = ["macs<=1.43e12", "macs<=0.85x", "kl<=0.05", "macs<=134515008", "macs<=134515400"]
    names = [pick.file for pick in parse_picks(bounds, ["kl", "macs"])]
    assert names == ["macs-1.43e12", "macs-0.85x", "kl-0.05", "macs-134515008", "macs-134515400"]
