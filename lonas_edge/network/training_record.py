"""The record of a training: `training.json` of a super-adapter."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lonas_edge.data.templates import Template
from lonas_edge.schema import Record


@dataclass(frozen=True)
class TrainedBase:
    """The base model that was trained on: its name, its revision on the hub, and SHA-256 of its files."""

    name: str
    revision: str | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class TrainedData:
    """A file that was learned from.

    Attributes:
        name: The file's name.
        sha256: Its hash.
        kind: What its records are: instruction, messages, text, glue, pair, triplet, or scored pair.
        weight: How often an epoch had each example.
        examples: Number of learned examples; of texts, pieces.
        dropped: Number of the others: too long, or without an output.
    """

    name: str
    sha256: str
    kind: str
    weight: float
    examples: int
    dropped: int


@dataclass(frozen=True)
class Recovered:
    """The sub-network that an adapter was trained for, and the adapter that training started from.

    Attributes:
        super_adapter: Name of the super-adapter; of a plain LoRA adapter, which has the maximal network only; or of the base
            model, for a new adapter.
        sha256: SHA-256 of the adapter's files, by name; empty for a base.
        subnetwork: Name of the sub-network.
        widths: Its widths, in group order.
    """

    super_adapter: str
    sha256: dict[str, str]
    subnetwork: str
    widths: tuple[int, ...]


@dataclass(frozen=True)
class TeacherModel:
    """The frozen teacher: its name, and SHA-256 of its files.

    An adapter on the base that was trained on has its own files only; that base as teacher has its config.json.
    """

    name: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Logged:
    """An entry of the log. None stands for NaN and Inf: fp16 skips steps whose gradients are not finite."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True)
class EvalLoss:
    """Mean loss on held-out examples after a step."""

    step: int
    loss: float


@dataclass(frozen=True)
class EvalData:
    """Held-out data.

    Attributes:
        name: The file's name.
        sha256: Its hash.
        examples: Number of examples whose loss was computed.
        also_trained: Number of them that occur in the training data, too.
        losses: In nats per learned token (squared error for a regression, distance from the
            teacher of an encoder that was not trained on GLUE).
    """

    name: str
    sha256: str
    examples: int
    also_trained: int
    losses: tuple[EvalLoss, ...]


@dataclass(frozen=True)
class TrainingRecord(Record):
    """How an adapter was trained.

    Attributes:
        base: The base model.
        search_space: Hash of the search space; None for plain LoRA.
        recovered: The sub-network that was fine-tuned (`--from`).
        teacher: The frozen teacher.
        data: The data files.
        task: The task of GLUE; None for others.
        prompt: The prompt template; None for an encoder.
        chat_template: The chat template (Jinja) behind the prompt `chat`.
        options: The `TrainOptions` of the version that trained.
        pipeline: The hub's name of the model's task; None in records of older versions.
        pooling: Pooling of an embedding model, described; None for others.
        int8_layers: Module paths of the layers that quantization-aware training kept in INT8.
        reordered: Whether channels were sorted by importance.
        stages: The `ScheduledStage`s.
        warmup_steps: Steps of the linear warm-up.
        steps: All optimizer steps.
        resumed_from_step: The step where this run continued; None if it started at the first.
        damaged_checkpoints: Of older versions.
        seconds: Duration of this run.
        device: The CUDA device's name, or cpu.
        precision: fp32, bf16 or fp16.
        processes: Number of parallel processes.
        losses: The log.
        tokens: Tokens in the examples of all steps, without padding.
        eval_data: The held-out data and their loss; None without any.
        versions: Versions of packages, by name.
    """

    NAME: ClassVar = "training"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Take the file that `lonas-edge train` wrote, or train again."

    base: TrainedBase
    search_space: str | None
    recovered: Recovered | None
    teacher: TeacherModel | None
    data: tuple[TrainedData, ...]
    task: str | None
    prompt: Template | None
    chat_template: str | None
    options: dict[str, Any]
    reordered: bool
    stages: tuple[dict[str, int | float | None], ...]
    warmup_steps: int
    steps: int
    resumed_from_step: int | None
    seconds: float
    device: str
    precision: str
    processes: int
    losses: tuple[Logged, ...]
    versions: dict[str, str]
    tokens: int | None = None
    eval_data: EvalData | None = None
    int8_layers: tuple[str, ...] = ()
    pipeline: str | None = None
    pooling: str | None = None
    damaged_checkpoints: tuple[str, ...] = ()
