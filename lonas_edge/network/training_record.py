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
    """A file that was learned from."""

    name: str
    sha256: str
    kind: str  # of its records: instruction, messages, text, glue, labels, pair, triplet, or scored pair
    weight: float  # how often an epoch had each example
    examples: int  # learned examples; of texts, pieces
    dropped: int  # the others: too long, or without an output


@dataclass(frozen=True)
class Recovered:
    """The sub-network that an adapter was trained for, and the adapter that training started from."""

    super_adapter: str  # its name; that of a plain LoRA adapter, or of the base model for a new adapter
    sha256: dict[str, str]  # of the adapter's files, by name; empty for a base
    subnetwork: str  # name of the sub-network
    widths: tuple[int, ...]  # in group order


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
    """Held-out data and the losses on them.

    Losses are in nats per learned token (squared error for a regression, distance from the teacher of an encoder that was not
    trained on GLUE).
    """

    name: str
    sha256: str
    examples: int  # examples whose loss was computed
    also_trained: int  # those of them that occur in the training data, too
    losses: tuple[EvalLoss, ...]


@dataclass(frozen=True)
class TrainingRecord(Record):
    """How an adapter was trained."""

    NAME: ClassVar = "training"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Take the file that `lonas-edge train` wrote, or train again."

    base: TrainedBase
    search_space: str | None  # its hash; None for plain LoRA
    recovered: Recovered | None  # the sub-network that was fine-tuned (`--from`)
    teacher: TeacherModel | None
    data: tuple[TrainedData, ...]
    task: str | None  # of GLUE; None for others
    prompt: Template | None  # None for an encoder
    chat_template: str | None  # Jinja, behind the prompt `chat`
    options: dict[str, Any]  # the `TrainOptions` of the version that trained
    reordered: bool  # whether channels were sorted by importance
    stages: tuple[dict[str, int | float | None], ...]  # the `ScheduledStage`s
    warmup_steps: int
    steps: int  # all optimizer steps
    resumed_from_step: int | None  # where this run continued; None if it started at the first
    seconds: float  # of this run
    device: str  # the CUDA device's name, or cpu
    precision: str  # fp32, bf16 or fp16
    processes: int  # parallel ones
    losses: tuple[Logged, ...]
    versions: dict[str, str]  # of packages, by name
    tokens: int | None = None  # in the examples of all steps, without padding
    eval_data: EvalData | None = None
    int8_layers: tuple[str, ...] = ()  # module paths of the layers that quantization-aware training kept in INT8
    pipeline: str | None = None  # the hub's name of the model's task; None in records of older versions
    pooling: str | None = None  # of an embedding model, described
    classes: tuple[str, ...] = ()  # of a classifier's own data, in the order of its outputs
