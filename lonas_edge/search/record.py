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
    """One evaluated network.

    Attributes:
        number: Its index among the evaluations.
        widths: In group order.
        quality: In the quality's unit.
        cost: In the cost's unit.
        seconds: Duration of the evaluation.
        origin: What proposed it: `warm-start:…`, `nsga2`, `refined`, `random`.
    """

    number: int
    widths: tuple[int, ...]
    quality: float
    cost: float
    seconds: float
    origin: str


@dataclass(frozen=True)
class Named:
    """An evaluation with a name; its widths are in `subnetworks/FILE.json` if it has a file."""

    name: str
    evaluation: int
    file: str | None = None


@dataclass(frozen=True)
class Scored:
    """The prompts that networks were scored on.

    Attributes:
        name: File name.
        sha256: Its hash.
        prompts: Number of prompts.
        template: Name of the template.
        unseen: Whether the super-adapter was trained on another file; None if unknown.
    """

    name: str
    sha256: str
    prompts: int
    template: str
    unseen: bool | None


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
    """Content of `search.json`.

    Attributes:
        study: Name of the study.
        model: Name of the base model.
        identity: Settings and input hashes that a continued search must share.
        data: The prompts.
        quality: Name of the quality, one of `QUALITIES`.
        cost: Name of the cost.
        units: Units of both, by name.
        settings: Options of the last run.
        fixed: Indices of the groups that were not searched, at their widest.
        sensitivity: The sensitivity table in nats: a row per group, a figure per width; empty rows for fixed groups. None
            without warm start and refinement.
        evaluations: All networks.
        front: The Pareto front: numbers of evaluations, the cheapest first.
        named: Evaluations with a name: the front, heuristic, maximal, minimal.
        picks: The picks, by expression.
        measured: The networks that were measured at the end.
        hypervolume: After each evaluation, the dominated share of the area between the ideal point (quality of the maximal
            network, cost of the minimal one) and the reference point (the reverse).
        conditions: Processor, versions, date.
        seconds: Duration of each step in the last run.
    """

    NAME: ClassVar[str] = "search"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Search again with --overwrite."
    study: str
    model: str
    identity: dict[str, Any]
    data: Scored
    quality: str
    cost: str
    units: dict[str, str]
    settings: dict[str, Any]
    fixed: tuple[int, ...]
    sensitivity: tuple[tuple[float, ...], ...] | None
    evaluations: tuple[Evaluation, ...]
    front: tuple[int, ...]
    named: tuple[Named, ...]
    picks: tuple[Named, ...]
    measured: tuple[Measured, ...]
    hypervolume: tuple[float, ...]
    conditions: dict[str, Any]
    seconds: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> "SearchRecord":
        """Read a record; every number must be that of an evaluation."""
        record = super().read(path)
        count = len(record.evaluations)
        numbers = [("front", number) for number in record.front]
        numbers += [(f"{kind}.{one.name}", one.evaluation) for kind in ("named", "picks") for one in getattr(record, kind)]
        problems = [f"{where}: evaluation {number} of {count}" for where, number in numbers if not 0 <= number < count]
        problems += [] if record.quality in QUALITIES else [f"quality: {record.quality!r} is not one of {', '.join(QUALITIES)}"]
        raise_all(f"{path}: not a {cls.NAME} of lonas-edge:", problems, cls.AGAIN)
        return record


def front(evaluations: Sequence[Evaluation], sign: int = 1) -> list[Evaluation]:
    """The Pareto front: evaluations that no other one equals or beats in both quality and cost, the cheapest first.

    Args:
        evaluations: The evaluations; of equal ones the first counts.
        sign: 1 if a lower quality is better, -1 if a higher one is.
    """
    members: list[Evaluation] = []
    for one in sorted(evaluations, key=lambda one: (one.cost, sign * one.quality, one.number)):
        if not members or sign * one.quality < sign * members[-1].quality:
            members.append(one)
    return members


def hypervolume(
    points: Sequence[tuple[float, float]], ideal: tuple[float, float], reference: tuple[float, float]
) -> list[float]:
    """Share of the area between two points that the points so far dominate.

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
            best = sorted([*(o for o in best if o[0] < point[0] or o[1] < point[1]), point], key=lambda one: one[1])
        area, quality = 0.0, reference[0]
        for one in best:
            if one[0] < quality and one[1] < reference[1]:
                area += (quality - one[0]) * (reference[1] - one[1])
                quality = one[0]
        shares.append(area / box if box > 0 else 0.0)
    return shares
