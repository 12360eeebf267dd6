"""The record of a search, `search.json`: every evaluation, the front, the picks, and what they depend on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lonas_edge.errors import raise_all
from lonas_edge.exporting.manifest import Origin
from lonas_edge.schema import Record
from lonas_edge.search.quality import QUALITIES


@dataclass(frozen=True)
class Evaluation:
    """One evaluated network.

    Attributes:
        number: Its place among the evaluations.
        widths: In group order.
        weight_format: The IR's.
        quality: In the quality's unit.
        cost: In the cost's unit.
        seconds: That it took.
        origin: What proposed it: `seed:…`, a sampler, `refined`.
    """

    number: int
    widths: tuple[int, ...]
    weight_format: str
    quality: float
    cost: float
    seconds: float
    origin: str


@dataclass(frozen=True)
class Named:
    """An evaluation with a name; `subnetworks/FILE.json` has its widths where `file` says so."""

    name: str
    evaluation: int
    file: str | None = None


@dataclass(frozen=True)
class Searched:
    """What was searched: base, adapter, and SHA-256 of the files that say what they are; hash of the search space."""

    base: Origin
    adapter: Origin | None
    search_space: str


@dataclass(frozen=True)
class Scored:
    """The prompts that networks were scored on.

    Attributes:
        name: The file's name.
        sha256: Its hash.
        prompts: How many.
        template: Name of the template.
        unseen: Whether the super-adapter was trained on another file, where that is known.
    """

    name: str
    sha256: str
    prompts: int
    template: str
    unseen: bool | None


@dataclass(frozen=True)
class Table:
    """The damage of each group alone, one row a group and one figure a width; rows of groups that are not searched are empty.

    Attributes:
        damage: In nats.
    """

    damage: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Measured:
    """A network of the front or a pick, exported and measured: milliseconds, prediction beside measurement.

    Of a language model TTFT and TPOT, of a classifier the latency of a pass.
    """

    name: str
    evaluation: int
    weight_format: str
    ttft: float | None = None
    tpot: float | None = None
    predicted_ttft: float | None = None
    predicted_tpot: float | None = None
    latency: float | None = None
    predicted_latency: float | None = None


@dataclass(frozen=True)
class SearchRecord(Record):
    """What `search.json` holds.

    Attributes:
        study: Name of the study.
        searched: What was searched.
        data: What it was scored on.
        quality: Name of the quality, one of `QUALITIES`.
        cost: Name of the cost.
        units: Of both, by name.
        settings: The options that it ran with.
        fixed: Groups that were not searched, at their widest.
        table: The damage table; None where it was not needed.
        evaluations: Every network.
        front: Numbers of the evaluations that no other one beats in both, the cheapest first.
        named: Those with a name: front, heuristic, maximal, minimal.
        picks: Those that were asked for, by their expressions.
        measured: Members of the front as they were measured in the end.
        hypervolume: After each evaluation, the share of what lies between the ideal (the maximal network's quality at the
            minimal one's cost) and the reference point (the minimal network's quality at the maximal one's cost).
        conditions: Processor, versions, date.
        seconds: By step.
        finished: Whether it ran to its end.
    """

    NAME: ClassVar[str] = "search"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Start the same search again: it goes on from its study and writes the file anew."
    study: str
    searched: Searched
    data: Scored
    quality: str
    cost: str
    units: dict[str, str]
    settings: dict[str, Any]
    fixed: tuple[int, ...]
    table: Table | None
    evaluations: tuple[Evaluation, ...]
    front: tuple[int, ...]
    named: tuple[Named, ...]
    picks: tuple[Named, ...]
    hypervolume: tuple[float, ...]
    conditions: dict[str, Any]
    seconds: dict[str, float]
    finished: bool
    measured: tuple[Measured, ...] = field(default=())

    @classmethod
    def read(cls, path: Path) -> "SearchRecord":
        """Read a record, as of `Record`; places that point nowhere are faults, too."""
        record = super().read(path)
        count = len(record.evaluations)
        problems = [
            f"evaluations.{place}: expected number {place}, found {one.number}"
            for place, one in enumerate(record.evaluations)
            if one.number != place
        ]
        pointing = [("front", number) for number in record.front]
        pointing += [(f"{kind}.{one.name}", one.evaluation) for kind in ("named", "picks") for one in getattr(record, kind)]
        problems += [f"{what}: evaluation {number}; there are {count}" for what, number in pointing if not 0 <= number < count]
        problems += [] if record.quality in QUALITIES else [f"quality: {record.quality!r} is not one of {', '.join(QUALITIES)}"]
        raise_all(f"{path}: not a {cls.NAME} of lonas-edge:", problems, cls.AGAIN)
        return record


def front(evaluations: Sequence[Evaluation], sign: int = 1) -> list[Evaluation]:
    """The evaluations that no other one equals or beats in both quality and cost.

    Args:
        evaluations: The evaluations.
        sign: 1 where a lower quality is better, -1 where a higher one is.

    Returns:
        Those, the cheapest first; of equal ones the first evaluated.
    """
    found: list[Evaluation] = []
    for one in sorted(evaluations, key=lambda one: (one.cost, sign * one.quality, one.number)):
        if not found or sign * one.quality < sign * found[-1].quality:
            found.append(one)
    return found


def hypervolume(
    points: Sequence[tuple[float, float]], ideal: tuple[float, float], reference: tuple[float, float]
) -> list[float]:
    """The area that the points seen so far beat, as a share of that between an ideal and a reference point.

    Args:
        points: (quality, cost) in the order seen; both minimized.
        ideal: The best of both.
        reference: The worst of both; points beyond it count nothing.

    Returns:
        The share after each point.
    """
    best: list[tuple[float, float]] = []  # not beaten, the cheapest first
    found = []
    box = (reference[0] - ideal[0]) * (reference[1] - ideal[1])
    for point in points:
        if not any(other[0] <= point[0] and other[1] <= point[1] for other in best):
            best = sorted([*(o for o in best if o[0] < point[0] or o[1] < point[1]), point], key=lambda one: one[1])
        area, quality = 0.0, reference[0]
        for one in best:
            if one[0] < quality and one[1] < reference[1]:
                area += (quality - one[0]) * (reference[1] - one[1])
                quality = one[0]
        found.append(area / box if box > 0 else 0.0)
    return found
