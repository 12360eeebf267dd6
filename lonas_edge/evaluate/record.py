"""The record of an evaluation, `eval.json`."""

from dataclasses import dataclass

from lonas_edge.evaluate.compare import Difference
from lonas_edge.exporting.evaluations import Conditions, TargetResult
from lonas_edge.schema import Record


@dataclass(frozen=True)
class EvalRecord(Record):
    """An evaluation. The other targets are compared with the first.

    Attributes:
        protocol: Name of the protocol.
        num_beams: Beams, where it generates.
        limit: Samples of each task; None for complete test sets.
        seed: Seed of their choice.
        targets: The results of each.
        differences: Of each from the first, by task and on average.
        conditions: Machine, versions, date.
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
