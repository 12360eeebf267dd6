"""How the networks of each task are reported: titles, decimals and explanations, one object per task."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from lonas_edge.bench.statistics import Interval
from lonas_edge.evaluate.answer_metrics import METRICS
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.tables import MISSING


class Column(NamedTuple):
    """A figure of each network."""

    name: str  # in records
    title: str
    digits: int
    meaning: str
    unit: str = ""  # of differences


@dataclass(frozen=True)
class Display:
    """How a task is reported."""

    qualities: tuple[Column, ...]  # in the order of tables; plots show the first one
    latencies: tuple[Column, ...]  # in the order of tables; plots and sentences have the last one
    distance: str  # that the search bounds
    loss: str  # of trainings
    lengths: str  # of the latencies, with two places for numbers
    usage: str  # of the model in the directory `{}`


_SPEARMAN = Column("spearman", "Spearman", 1, "rank correlation with the labels, percent", ", points")
_FROM_FP32 = "from the unpruned model in fp32"
LANGUAGE_MODEL = Display(
    qualities=(
        Column("loss", "held-out loss", 3, "nats per learned token"),
        Column("accuracy", "token accuracy", 2, "learned tokens that are the most likely ones, percent", ", points"),
    ),
    latencies=(
        Column("ttft", "TTFT", 1, "time to first token"),
        Column("tpot", "TPOT", 2, "time per output token"),
    ),
    distance="KL divergence",
    loss="loss in nats per learned token",
    lengths="{} prompt tokens, {} generated tokens",
    usage="for OpenVINO; try it with `lonas-edge chat {}`",
)
EMBEDDING_MODEL = replace(
    LANGUAGE_MODEL,
    qualities=(Column("distance", "cosine distance", 4, _FROM_FP32), _SPEARMAN),
    latencies=(Column("latency", "latency", 2, "of a text"),),
    distance="cosine distance",
    loss="cosine distance",
    lengths="texts of {} tokens, one at a time",
    usage="for OpenVINO; its README.md says how to use it",
)
CLASSIFIER = replace(
    EMBEDDING_MODEL,
    qualities=(
        Column("distance", "KL", 4, f"divergence of the class probabilities {_FROM_FP32}, nats"),
        Column("accuracy", "accuracy", 1, "examples whose label is the most likely class, percent", ", points"),
    ),
    distance="KL divergence",
    loss="KL in nats",
)
RERANKER = replace(
    CLASSIFIER,
    qualities=(Column("distance", "squared distance", 4, f"of the scores {_FROM_FP32}"), _SPEARMAN),
    distance="squared distance of scores",
    loss="squared distance",
)
DISPLAYS = {CAUSAL_LM.name: LANGUAGE_MODEL, EMBEDDING.name: EMBEDDING_MODEL, CLASSIFICATION.name: CLASSIFIER}
DISPLAYS["reranker"] = RERANKER


ANSWER_TIME = Column("answer", "answer", 0, "time of a greedy answer of at most 256 tokens to a held-out prompt")


def qualities_of(record: CompressRecord) -> list[Column]:
    """The columns of the qualities that were measured; the metric of answers comes first, and then the first other one."""
    known = [column for column in DISPLAYS[record.task].qualities if column.name in record.networks[0].quality]
    if record.metric is None:
        return known
    if record.metric in METRICS:
        answers = Column(record.metric, record.metric, 1, "of greedy answers to held-out prompts, percent", ", points")
    else:
        answers = Column(record.metric, record.metric, 3, "mean over greedy answers to held-out prompts")
    return [answers, *known[:1]]


def latencies_of(record: CompressRecord) -> list[Column]:
    """The columns of the latencies that were measured."""
    return [each for each in (*DISPLAYS[record.task].latencies, ANSWER_TIME) if each.name in record.networks[0].latency]


def interval(value: Interval | None, digits: int, sign: str = "", unit: str = "") -> str:
    """Format a value with its interval, such as `0.65x [0.63, 0.67]`; `sign` is `+` for differences."""
    if value is None:
        return MISSING
    middle, low, high = (f"{number:{sign}z.{digits}f}" for number in (value.value, value.low, value.high))
    return f"{middle}{unit} [{low}, {high}]"
