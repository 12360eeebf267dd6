"""The record of a search, `search.json`: every evaluation, the front, the picks, and their conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lonas_edge.errors import raise_all
from lonas_edge.schema import Record
from lonas_edge.search.quality import QUALITIES


@dataclass(frozen=True)
class Evaluation:
    """One evaluated network."""

    number: int  # its index among the evaluations
    widths: tuple[int, ...]  # in group order
    quality: float  # in the quality's unit
    cost: float  # in the cost's unit
    seconds: float  # duration of the evaluation
    origin: str  # what proposed it: `warm-start:…`, `nsga2`, `refined`, `random`


@dataclass(frozen=True)
class Named:
    """An evaluation with a name; its widths are in `subnetworks/FILE.json` if it has a file."""

    name: str
    evaluation: int
    file: str | None = None


@dataclass(frozen=True)
class Scored:
    """The prompts that networks were scored on."""

    name: str  # file name
    sha256: str  # its hash
    prompts: int  # number of prompts
    template: str  # name of the template
    unseen: bool | None  # whether the super-adapter was trained on another file; None if unknown


@dataclass(frozen=True)
class Measured:
    """A network's measured and predicted latencies in milliseconds."""

    name: str
    evaluation: int
    ttft: float | None = None
    tpot: float | None = None
    predicted_ttft: float | None = None
    predicted_tpot: float | None = None
    latency: float | None = None
    predicted_latency: float | None = None


@dataclass(frozen=True)
class SearchRecord(Record):
    """Content of `search.json`."""

    NAME: ClassVar[str] = "search"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Search again with --overwrite."
    study: str
    model: str  # name of the base model
    identity: dict[str, Any]  # settings and input hashes that a continued search must share
    data: Scored
    quality: str  # name of the quality, one of `QUALITIES`
    cost: str
    units: dict[str, str]  # units of both, by name
    settings: dict[str, Any]  # options of the last run
    fixed: tuple[int, ...]  # indices of the groups that were not searched, at their widest
    # the sensitivity table in nats: a row per group, a figure per width; empty rows for fixed groups
    sensitivity: tuple[tuple[float, ...], ...]
    evaluations: tuple[Evaluation, ...]  # all networks
    front: tuple[int, ...]  # the Pareto front: numbers of evaluations, the cheapest first
    named: tuple[Named, ...]  # evaluations with a name: the front, heuristic, maximal, minimal
    picks: tuple[Named, ...]  # the picks, by expression
    measured: tuple[Measured, ...]  # the networks that were measured at the end
    # after each evaluation, the dominated share of the area between the ideal point (quality of the maximal network, cost of
    # the minimal one) and the reference point (the reverse)
    hypervolume: tuple[float, ...]
    conditions: dict[str, Any]  # processor, versions, date
    seconds: dict[str, float]  # duration of each step in the last run

    @classmethod
    def read(cls, path: Path) -> "SearchRecord":
        """Read a record; every number must be that of an evaluation."""
        record = super().read(path)
        count = len(record.evaluations)
        numbers = [("front", number) for number in record.front]
        numbers += [
            (f"{kind}.{entry.name}", entry.evaluation) for kind in ("named", "picks") for entry in getattr(record, kind)
        ]
        problems = [f"{where}: evaluation {number} of {count}" for where, number in numbers if not 0 <= number < count]
        problems += [] if record.quality in QUALITIES else [f"quality: {record.quality!r} is not one of {', '.join(QUALITIES)}"]
        raise_all(f"{path}: not a {cls.NAME} of lonas-edge:", problems, cls.AGAIN)
        return record


def front(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Find the Pareto front, the cheapest first."""
    members: list[Evaluation] = []
    for evaluation in sorted(evaluations, key=lambda evaluation: (evaluation.cost, evaluation.quality, evaluation.number)):
        if not members or evaluation.quality < members[-1].quality:
            members.append(evaluation)
    return members


def hypervolume(
    points: Sequence[tuple[float, float]], ideal: tuple[float, float], reference: tuple[float, float]
) -> list[float]:
    """Compute the share of the area between two points that the points so far dominate.

    Args:
        points: (quality, cost) in order; both minimized.
        ideal: The best of both.
        reference: The worst of both; points beyond it do not count.

    Returns:
        The share after each point.
    """
    best: list[tuple[float, float]] = []  # not dominated, the cheapest first
    shares = []
    box = (reference[0] - ideal[0]) * (reference[1] - ideal[1])
    for point in points:
        if not any(other[0] <= point[0] and other[1] <= point[1] for other in best):
            best = sorted([*(o for o in best if o[0] < point[0] or o[1] < point[1]), point], key=lambda other: other[1])
        area, quality = 0.0, reference[0]
        for better, cost in best:
            if better < quality and cost < reference[1]:
                area += (quality - better) * (reference[1] - cost)
                quality = better
        shares.append(area / box if box > 0 else 0.0)
    return shares
