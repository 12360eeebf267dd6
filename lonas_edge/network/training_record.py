"""The record of a training: `training.json` of a super-adapter."""

from dataclasses import dataclass
from typing import Any, ClassVar

from lonas_edge.data.templates import Template
from lonas_edge.network.solved import Solved
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
        kind: What its records are: instruction, messages, text, or glue.
        weight: How often an epoch had each example.
        examples: How many examples were taken; of texts, pieces.
        dropped: How many records were not: too long, or without an output.
    """

    name: str
    sha256: str
    kind: str
    weight: float
    examples: int
    dropped: int


@dataclass(frozen=True)
class Specialized:
    """The one sub-network that an adapter was trained for, and the adapter that it began as.

    Attributes:
        super_adapter: Name of the super-adapter, or of the plain LoRA adapter, whose one network is the maximal.
        sha256: SHA-256 of its files, by name.
        subnetwork: What the sub-network is called.
        widths: One a group, in group order.
        solved: What solving the sub-network gave, before it was trained; None where it was not solved.
    """

    super_adapter: str
    sha256: dict[str, str]
    subnetwork: str
    widths: tuple[int, ...]
    solved: Solved | None


@dataclass(frozen=True)
class Taught:
    """The frozen teacher: its name, and SHA-256 of its files, but for those of the base that was trained on."""

    name: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Logged:
    """An entry of the log. None is what JSON cannot say: with fp16 a step whose gradients are not finite is skipped."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True)
class TrainingRecord(Record):
    """How a super-adapter came to be.

    Attributes:
        base: The base model.
        search_space: Hash of the search space; None for plain LoRA.
        specialized: The sub-network that was trained alone; None for a super-adapter, and for LoRA trained from the start.
        teacher: The frozen model that was learned from, if there was one.
        data: The files.
        task: The task of GLUE; None for instruction data.
        prompt: The prompt template; None for a task of GLUE.
        chat_template: The chat template (Jinja), where the prompt is made of one.
        options: The `TrainOptions`, as the version that trained had them.
        reordered: Whether channels were put in order of importance.
        stages: The `PlannedStage`s.
        warmup_steps: Steps of the linear warm-up.
        steps: Optimizer steps in all.
        resumed_from_step: Where this run went on; None if it began at the beginning.
        damaged_checkpoints: What was wrong with newer checkpoints than that.
        seconds: Those of this run, since it went on.
        device: The CUDA device's name, or cpu.
        precision: fp32, bf16 or fp16.
        processes: How many trained in parallel.
        losses: The log.
        versions: Versions of the packages by name.
    """

    NAME: ClassVar = "training"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "Take the file that `lonas-edge train` wrote, or train again."

    base: TrainedBase
    search_space: str | None
    specialized: Specialized | None
    teacher: Taught | None
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
    damaged_checkpoints: tuple[str, ...]
    seconds: float
    device: str
    precision: str
    processes: int
    losses: tuple[Logged, ...]
    versions: dict[str, str]
