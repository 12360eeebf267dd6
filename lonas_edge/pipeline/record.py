"""The record of `compress`: `compress.json`, which the report is made of."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lonas_edge.bench.statistics import Interval
from lonas_edge.schema import Record
from lonas_edge.space.picture import Layer

COMPRESS = "compress.json"


@dataclass(frozen=True)
class Step:
    """A step of the pipeline.

    Attributes:
        name: Its name, such as `recover tpot<=0.7x`.
        command: The command that does the same.
        seconds: Its duration, summed over interruptions.
        estimated_seconds: Its duration as it was estimated before the start; None where it was not.
    """

    name: str
    command: str
    seconds: float
    estimated_seconds: float | None


@dataclass(frozen=True)
class Quality:
    """A quality on held-out examples, and its paired difference from the first network; None for that one."""

    value: float
    difference: Interval | None


@dataclass(frozen=True)
class Latency:
    """A latency in ms: the median, its ratio to the first network's in common rounds (None without any), and all samples."""

    median: Interval
    ratio: Interval | None
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Network:
    """A measured network.

    Attributes:
        name: Its name in tables: `unpruned INT8 (optimum-cli)`, `compressed INT4`, `compressed INT4 (tpot<=0.7x)`.
        folder: Its directory in the output; None for baselines, which are not kept.
        weight_format: The format of its weights.
        file_bytes: Size of the IR's weights on the disk.
        parameters: Number of parameters.
        quality: By name. `loss`: mean loss in nats per learned token; `accuracy`: learned tokens that are the most likely ones,
            percent. Of encoders `distance`: mean cosine distance of embeddings, squared distance of scores or KL divergence
            of classes from the unpruned model in fp32; with labels `spearman`: rank correlation of cosines or scores with
            them, percent, or `accuracy`: examples whose most likely class is the label, percent.
        latency: By name: `ttft` and `tpot`, of encoders `latency`.
        removed: The kept parts of each layer; empty for unpruned networks.
        target: The target that it was searched for; None for baselines.
    """

    name: str
    folder: str | None
    weight_format: str
    file_bytes: int
    parameters: int
    quality: dict[str, Quality]
    latency: dict[str, Latency]
    removed: tuple[Layer, ...]
    target: str | None = None


@dataclass(frozen=True)
class Curve:
    """The losses of a training: pairs of a step and a loss, in nats per learned token; of encoders their distance.

    Attributes:
        name: The training's step.
        losses: The training loss; of a recovery the distance from the teacher.
        held_out: The held-out loss.
        distilled: Whether `losses` are KL divergences, and `held_out` a cross-entropy.
    """

    name: str
    losses: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]
    distilled: bool = False


@dataclass(frozen=True)
class Candidate:
    """A sub-network that the search evaluated, before recovery.

    Attributes:
        cost: Its cost as a fraction of the unpruned network's.
        kl: KL divergence from the unpruned network, nats per learned token; of encoders their distance.
        optimal: Whether it is in the Pareto front.
        picks: The targets that it was picked for.
    """

    cost: float
    kl: float
    optimal: bool
    picks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, its reference answer, and the answers of networks by name."""

    prompt: str
    reference: str
    answers: dict[str, str]


@dataclass(frozen=True)
class CompressRecord(Record):
    """How a model was compressed.

    Attributes:
        task: Name of the model's task, a key of `PIPELINE_TASKS`.
        source: Name of the compressed model or adapter.
        base: Name of the base model.
        data: The data file's name.
        examples: Number of examples by part: train, held_out.
        options: All options with their values.
        sha256: Hashes of the inputs, by name.
        machine: Processor, cores, operating system.
        versions: Versions of packages, by name.
        cost: The cost that the search minimized: tpot, ttft, latency, …
        steps: The steps, in their order.
        networks: The measured networks, the baseline first.
        curves: The losses of all trainings.
        candidates: The networks that the search evaluated.
        samples: Answers to held-out prompts.
        prompt_len: Prompt or text tokens of the latencies.
        new_tokens: Generated tokens of the latencies; 0 where none are generated.
        tokens_per_text: Tokens per text of the compressed networks, relative to the baselines. Ratios of latencies include it.
        warnings: Limits of the latencies.
    """

    NAME: ClassVar = "compress"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Run `lonas-edge compress` again."

    task: str
    source: str
    base: str
    data: str
    examples: dict[str, int]
    options: dict[str, Any]
    sha256: dict[str, str]
    machine: dict[str, Any]
    versions: dict[str, str]
    cost: str
    steps: tuple[Step, ...]
    networks: tuple[Network, ...]
    curves: tuple[Curve, ...]
    candidates: tuple[Candidate, ...]
    samples: tuple[Sample, ...]
    prompt_len: int
    new_tokens: int
    tokens_per_text: float = 1.0
    warnings: tuple[str, ...] = ()
