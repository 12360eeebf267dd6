"""The record of a search, `search.json`: every evaluation, the front, the picks, and their conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lonas_edge.schema import Record


@dataclass(frozen=True)
class Evaluation:
    """One evaluated network."""

    number: int  # its index among the evaluations
    widths: tuple[int, ...]  # in group order
    quality: float  # in the quality's unit
    cost: float  # in the cost's unit
    seconds: float  # duration of the evaluation
    origin: str  # what proposed it: `warm-start:…`, `nsga2`, `greedy`, `refined`, `random`


@dataclass(frozen=True)
class Named:
    """An evaluation with a name; its widths are in `subnetworks/FILE.json` if it has a file."""

    name: str
    evaluation: int
    file: str | None = None


@dataclass(frozen=True)
class SearchRecord(Record):
    """Content of `search.json`."""

    NAME: ClassVar[str] = "search"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Search again with --overwrite."
    study: str
    model: str  # name of the base model
    identity: dict[str, Any]  # settings and input hashes that a continued search must share
    data: str  # file name of the prompts that networks were scored on
    unseen: bool | None  # whether the super-adapter was trained on another file; None if unknown
    quality: str  # name of the quality, one of `QUALITIES`
    cost: str
    units: dict[str, str]  # units of both, by name
    settings: dict[str, Any]  # options of the last run
    # the sensitivity table in nats: a row per group, a figure per width; empty rows for groups that were not searched
    sensitivity: tuple[tuple[float, ...], ...]
    evaluations: tuple[Evaluation, ...]  # all networks
    front: tuple[int, ...]  # the Pareto front: numbers of evaluations, the cheapest first
    named: tuple[Named, ...]  # evaluations with a name: the front, heuristic, maximal, minimal
    picks: tuple[Named, ...]  # the picks, by expression
    conditions: dict[str, Any]  # processor, versions, date
    seconds: float  # duration of the last run

    @property
    def unpruned_cost(self) -> float:
        """The cost of the unpruned network, in the cost's unit."""
        return next(self.evaluations[each.evaluation].cost for each in self.named if each.name == "maximal")


def front(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Find the Pareto front, the cheapest first."""
    members: list[Evaluation] = []
    for evaluation in sorted(evaluations, key=lambda evaluation: (evaluation.cost, evaluation.quality, evaluation.number)):
        if not members or evaluation.quality < members[-1].quality:
            members.append(evaluation)
    return members
