"""What `compress` does by task of a model, one object each. No torch: reports import this module."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import BLOCK_KINDS, CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, output_names
from lonas_edge.pipeline.options import KEEP, CompressOptions
from lonas_edge.search.cost import COSTS, CostSettings, context_faults

if TYPE_CHECKING:
    from lonas_edge.network.source import Source
    from lonas_edge.pipeline.plan import Plan
    from lonas_edge.pipeline.record import Quality, Sample
    from lonas_edge.progress import Progress

ATTENTION, _MLP, LAYER, *_ = BLOCK_KINDS


@dataclass(frozen=True)
class PipelineTask(ABC):
    """How models of a task are compressed and reported.

    Attributes:
        name: Its name in records and messages.
        kind: The models' kind.
        adapts: Whether a base model is fine-tuned first; other models are finished, and are compressed as they are.
        block: Kind of the blocks that the search removes.
        auto: The target `auto`.
        weight_format: Default weight format of the result.
        prompt_len: Default tokens of the latencies.
        new_tokens: Default generated tokens of the latencies; 0 where none are generated.
        most: Held-out examples, at most.
        batch: Examples of a training step.
        micro_batch: Examples that are computed at once.
        recovery_tokens: Tokens of the recovery.
        prompts: Prompts of the search, at least and at most.
        search_tokens: Tokens of these prompts.
        optimum: Options of `optimum-cli export openvino`.
        references: Further formats in which `optimum-cli` stores the unpruned model, to compare with.
        latencies: Latencies by the name of their metric in `bench`.
        same_losses: Whether the held-out loss of a recovery is the distance that it learns.
    """

    name: str
    kind: ModelKind
    adapts: bool
    block: str
    auto: str
    weight_format: str
    prompt_len: int
    new_tokens: int
    most: int
    batch: int
    micro_batch: int
    recovery_tokens: int
    prompts: tuple[int, int]
    search_tokens: int
    optimum: tuple[str, ...]
    references: tuple[str, ...]
    latencies: Mapping[str, str]
    same_losses: bool

    @property
    def costs(self) -> list[str]:
        """Costs that a target can bound."""
        return [name for name, cost in COSTS.items() if not cost.timed or cost.generates == self.kind.generates]

    def settings(self, options: CompressOptions) -> CostSettings:
        """Weight format and lengths of the options, with this task's defaults."""
        return CostSettings(
            options.weight_format or self.weight_format,
            prompt_len=options.prompt_len or self.prompt_len,
            new_tokens=options.new_tokens or self.new_tokens,
        )

    def check(self, options: CompressOptions, source: "Source") -> None:
        """Refuse options that mean nothing for this task or source, and lengths beyond the model's context."""
        settings, problems = self.settings(options), []
        if not self.kind.generates:
            given, settings = {"--prompt": options.prompt, "--new-tokens": options.new_tokens}, replace(settings, new_tokens=0)
            named = [f"{name} {value}" for name, value in given.items() if value is not None]
            problems = [f"{name}: a {self.name} generates no text; omit it" for name in named]
        if options.epochs is not None and (source.adapter or not self.adapts):
            what = "the adapter" if source.adapter else f"a {self.name}"
            problems.append(f"--epochs {options.epochs:g}: {what} is compressed without fine-tuning; omit it")
        problems += context_faults(settings, source.architecture.context)
        raise_all(f"{source.base.folder}: these options do not fit the model:", problems)

    @abstractmethod
    def measured(self, plan: "Plan", folders: Mapping[str, Path], progress: "Progress") -> "dict[str, dict[str, Quality]]":
        """Measure the qualities of exported networks by name, on the held-out examples; the first one is the baseline."""

    def answers(self, plan: "Plan", folders: Mapping[str, Path], progress: "Progress") -> "list[Sample]":
        """Sample answers of exported networks by name."""
        return []


class _LanguageModel(PipelineTask):
    def measured(self, plan: "Plan", folders: Mapping[str, Path], progress: "Progress") -> "dict[str, dict[str, Quality]]":
        from lonas_edge.pipeline.measure import qualities

        return qualities(plan, folders, progress)

    def answers(self, plan: "Plan", folders: Mapping[str, Path], progress: "Progress") -> "list[Sample]":
        from lonas_edge.pipeline.measure import sampled

        return sampled(plan, folders, progress)


class _EmbeddingModel(PipelineTask):
    def measured(self, plan: "Plan", folders: Mapping[str, Path], progress: "Progress") -> "dict[str, dict[str, Quality]]":
        from lonas_edge.pipeline.embeddings import qualities

        return qualities(plan, folders, progress)


@dataclass(frozen=True)
class _Classifier(PipelineTask):
    """A classifier, or a model of one score.

    Attributes:
        outputs: Names of a model's outputs.
        headless: Whether the head is an adapter's, and its base has none.
    """

    outputs: tuple[str, ...] = ()
    headless: bool = False

    def check(self, options: CompressOptions, source: "Source") -> None:
        super().check(options, source)
        if self.headless and options.vocabulary != KEEP:
            raise LonasEdgeError(
                f"--vocabulary {options.vocabulary}: the adapter's base has no classification head, and its vocabulary cannot "
                "be trimmed. Merge them with `lonas-edge export ADAPTER --subnet maximal --stage checkpoint --output MERGED`, "
                "and compress MERGED."
            )

    def measured(self, plan: "Plan", folders: Mapping[str, Path], progress: "Progress") -> "dict[str, dict[str, Quality]]":
        from lonas_edge.pipeline.classifiers import qualities

        return qualities(plan, folders, progress)


LANGUAGE_MODEL = _LanguageModel(
    CAUSAL_LM.name,
    CAUSAL_LM,
    adapts=True,
    block=ATTENTION,
    auto="kl<=0.15",  # docs/benchmarks/recovery.md has the loss after the recovery
    weight_format="int4_sym",  # trained for, at equal accuracy faster than INT8: docs/benchmarks/recovery.md
    prompt_len=256,
    new_tokens=64,
    most=400,
    batch=16,
    micro_batch=4,  # 16 take 9.2 instead of 4.3 GB in a recovery at 135M, and as long (docs/benchmarks/compress.md)
    recovery_tokens=100_000,  # as in docs/benchmarks/recovery.md
    prompts=(16, 64),
    search_tokens=3_000,  # an evaluation takes some five seconds on two cores at 135M
    optimum=("--task", CAUSAL_LM.conversion),
    references=(),
    latencies={"ttft": "ttft", "tpot": "tpot"},
    same_losses=False,
)
EMBEDDING_MODEL = _EmbeddingModel(
    EMBEDDING.name,
    EMBEDDING,
    adapts=False,
    block=LAYER,
    auto="kl<=0.2",  # two of MiniLM's six layers (0.169): docs/benchmarks/embeddings.md
    weight_format="int8_sym",  # INT4 is no faster: docs/benchmarks/embeddings.md
    prompt_len=128,
    new_tokens=0,
    most=1500,
    batch=32,
    micro_batch=32,
    recovery_tokens=1_000_000,  # as in docs/benchmarks/embeddings.md
    prompts=(64, 256),
    search_tokens=10_000,
    optimum=("--task", EMBEDDING.conversion, "--library", "transformers"),
    references=("fp32",),
    latencies={"generate_duration": "latency"},
    same_losses=True,
)
_AS_EMBEDDING: dict[str, Any] = vars(EMBEDDING_MODEL) | {
    "name": CLASSIFICATION.name,
    "kind": CLASSIFICATION,
    # a sixth of the layers (docs/benchmarks/embeddings.md): distances of two classifiers or rerankers have no common scale
    "auto": "macs<=0.84x",
    "optimum": ("--task", CLASSIFICATION.conversion, "--library", "transformers"),
}
CLASSIFIER = _Classifier(**_AS_EMBEDDING)
RERANKER = replace(CLASSIFIER, name="reranker")
PIPELINE_TASKS = {each.name: each for each in (LANGUAGE_MODEL, EMBEDDING_MODEL, CLASSIFIER, RERANKER)}


def task_of(source: "Source") -> PipelineTask:
    """The object of a model.

    Raises:
        LonasEdgeError: If it is a classifier without a head.
    """
    kind = source.architecture.family.kind
    return _classifier_of(source) if kind is CLASSIFICATION else PIPELINE_TASKS[kind.name]


def _classifier_of(source: "Source") -> PipelineTask:
    from lonas_edge.data.pooling import EMBEDS
    from lonas_edge.network.checkpoints import open_tensors

    architecture, folder = source.architecture, source.base.folder
    tensors = open_tensors(folder)
    tensors.rename(architecture.family)
    missing = architecture.head.keys() - tensors.shapes.keys()
    if missing - source.replaced().keys():
        raise LonasEdgeError(
            f"{source.folder}: has no classification head; fine-tune it first: lonas-edge train --model {folder} "
            f"--data TASK.tsv --output ADAPTER. Then compress ADAPTER. {EMBEDS}"
        )
    names = output_names(architecture.config)
    task = RERANKER if len(names) == 1 else CLASSIFIER
    return replace(task, outputs=names, headless=bool(missing))


def options_of(settings: CostSettings) -> dict[str, Any]:
    """The options that `settings` resolves."""
    return {
        "weight_format": settings.weight_format,
        "prompt_len": settings.prompt_len,
        "new_tokens": settings.new_tokens or None,
    }
