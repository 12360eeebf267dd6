"""The record of `compress`: `compress.json`, which the report is made of."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lonas_edge.bench.statistics import Interval
from lonas_edge.evaluate.answer_metrics import METRICS
from lonas_edge.pipeline.tasks import ANSWER_TIME, PROFILES, Column, interval
from lonas_edge.schema import Record
from lonas_edge.space.picture import Layer
from lonas_edge.tables import Table, megabytes

COMPRESS = "compress.json"


@dataclass(frozen=True)
class StepTime:
    """A finished step."""

    name: str  # such as `recover tpot<=0.7x`
    command: str  # that does the same
    seconds: float  # summed over interruptions
    estimated_seconds: float | None  # before the start; None for steps that take minutes


@dataclass(frozen=True)
class Quality:
    """A quality on held-out examples, and its paired difference from the first network; None for that one."""

    value: float
    difference: Interval | None
    interval: Interval | None = None  # of the value itself, where it is a mean over answers


@dataclass(frozen=True)
class Latency:
    """A latency in ms: the median, its ratio to the first network's in common rounds (None without any), and all samples."""

    median: Interval
    ratio: Interval | None
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Network:
    """A measured network. `pipeline.tasks` explains its qualities."""

    name: str  # in tables: `unpruned INT8 (optimum-cli)`, `compressed INT4`, `compressed INT4 (tpot<=0.7x)`
    folder: str | None  # in the output; None for baselines, which are not kept
    weight_format: str
    file_bytes: int  # of the IR's weights
    parameters: int
    # figures of the metric of answers, `loss` and `accuracy`; of encoders `distance`, and with labels `spearman` or `accuracy`
    quality: dict[str, Quality]
    latency: dict[str, Latency]  # `ttft`, `tpot` and `answer`; of encoders `latency`
    removed: tuple[Layer, ...]  # the kept parts of each layer; empty for unpruned networks
    target: str | None = None  # that it was searched for; None for baselines


@dataclass(frozen=True)
class Curve:
    """The losses of a training: pairs of a step and a loss, in nats per learned token; of encoders their distance."""

    name: str  # of the step
    losses: tuple[tuple[int, float], ...]  # of a recovery the distance from the teacher
    held_out: tuple[tuple[int, float], ...]
    distilled: bool = False  # whether `losses` are KL divergences, and `held_out` a cross-entropy


@dataclass(frozen=True)
class Candidate:
    """A sub-network that the search evaluated, before recovery."""

    cost: float  # as a fraction of the unpruned network's
    kl: float  # from the unpruned network, nats per learned token; of encoders their distance
    optimal: bool  # in the Pareto front
    picks: tuple[str, ...] = ()  # the targets that it was picked for


@dataclass(frozen=True)
class Trial:
    """A network that was tried for a target in a metric, after its recovery."""

    pick: str  # of the search
    network: str  # what was removed
    difference: Interval  # of the metric from the unpruned INT8 model, in points or the metric's unit


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, its reference answer, and the answers of networks by name."""

    prompt: str
    reference: str
    answers: dict[str, str]


@dataclass(frozen=True)
class CompressRecord(Record):
    """How a model was compressed."""

    NAME: ClassVar = "compress"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Run `lonas-edge compress` again."

    task: str  # a key of `PROFILES`
    source: str  # names of the compressed model or adapter, the base model and the data file
    base: str
    data: str
    examples: dict[str, int]  # by part: train, held_out
    options: dict[str, Any]  # with defaults resolved
    sha256: dict[str, str]  # of the source's files
    machine: dict[str, Any]  # processor, cores, operating system
    versions: dict[str, str]  # of packages
    cost: str  # that the search minimized: tpot, ttft, latency, …
    steps: tuple[StepTime, ...]
    networks: tuple[Network, ...]  # the baseline first
    curves: tuple[Curve, ...]  # of all trainings
    candidates: tuple[Candidate, ...]
    samples: tuple[Sample, ...]
    prompt_len: int  # prompt or text tokens of the latencies
    new_tokens: int  # generated tokens of the latencies; 0 where none are generated
    trials: dict[str, tuple[Trial, ...]] = field(default_factory=dict)  # by target in a metric
    metric: str | None = None  # of greedy answers to held-out prompts: its first figure among the qualities
    tokens_per_text: float = 1.0  # of the compressed networks, relative to the baselines; ratios of latencies include it
    warnings: tuple[str, ...] = ()  # limits of the latencies

    @property
    def qualities(self) -> list[Column]:
        """The columns of the qualities that were measured; the metric of answers comes first, and then the first other one."""
        known = [column for column in PROFILES[self.task].qualities if column.name in self.networks[0].quality]
        if self.metric is None:
            return known
        if self.metric in METRICS:
            answers = Column(self.metric, self.metric, 1, "of greedy answers to held-out prompts, percent", ", points")
        else:
            answers = Column(self.metric, self.metric, 3, "mean over greedy answers to held-out prompts")
        return [answers, *known[:1]]

    @property
    def latencies(self) -> list[Column]:
        """The columns of the latencies that were measured."""
        return [each for each in (*PROFILES[self.task].latencies, ANSWER_TIME) if each.name in self.networks[0].latency]

    def table(self) -> Table:
        """The measured networks; differences and ratios are from the first one."""
        headings = ["network"]
        for column in self.qualities:
            headings += [column.title, f"{column.title} Δ{column.unit} [95 %]"]
        for column in self.latencies:
            headings += [f"{column.title}, ms", f"{column.title} ratio [95 %]"]
        rows = []
        for network in self.networks:
            row = [network.name]
            for column in self.qualities:
                quality = network.quality[column.name]
                value = f"{quality.value:.{column.digits}f}"
                own = interval(quality.interval, column.digits) if quality.interval else value
                row += [own, interval(quality.difference, column.digits, sign="+")]
            for column in self.latencies:
                latency = network.latency[column.name]
                row += [f"{latency.median.value:.{column.digits}f}", interval(latency.ratio, 2, unit="x")]
            rows.append([*row, megabytes(network.file_bytes)])
        return Table([*headings, "size, MB"], rows)

    def _repr_markdown_(self) -> str:
        """The table, which a notebook shows."""
        return "\n".join(self.table().to_markdown())
