"""The record of an evaluation, `eval.json`."""

from dataclasses import dataclass

from lonas_edge.evaluate.compare import Difference
from lonas_edge.exporting.evaluations import Conditions, TargetResult
from lonas_edge.schema import Record


@dataclass(frozen=True)
class Report(Record):
    """An evaluation. The first target is what the others are compared with.

    Attributes:
        protocol: Name of the protocol.
        num_beams: Beams, where it generates.
        limit: Samples of each task; None for whole test sets.
        seed: Seed of their choice.
        targets: What was found of each.
        differences: Of each from the first, task by task and over all.
        conditions: Where and when.
    """

    NAME = "eval"
    VERSION = 1
    AGAIN = "Run `lonas-edge eval` again."

    protocol: str
    num_beams: int | None
    limit: int | None
    seed: int
    targets: tuple[TargetResult, ...]
    differences: tuple[Difference, ...]
    conditions: Conditions
