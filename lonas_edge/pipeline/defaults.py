"""How models of each task are compressed by default, and which options and targets fit them."""

from dataclasses import dataclass, replace

from lonas_edge.data.pooling import EMBEDS
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import BLOCK_KINDS, CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, output_names
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.source import Source
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.search.cost import CostSettings, context_errors

_ATTENTION, _LAYER = BLOCK_KINDS[0], BLOCK_KINDS[2]


@dataclass(frozen=True)
class Defaults:
    """The defaults of a task."""

    name: str  # in records and messages
    kind: ModelKind
    adapts: bool  # whether a base model is fine-tuned first; other models are finished, and are compressed as they are
    block: str  # kind of the blocks that the search removes
    target: str  # `auto`
    weight_format: str  # of the result
    prompt_len: int  # tokens of the latencies
    new_tokens: int | None  # generated tokens of the latencies
    held_out: int  # examples, at most
    batch: int  # examples of a training step
    micro_batch: int  # examples that are computed at once
    recovery_tokens: int
    prompts: tuple[int, int]  # of the search, at least and at most
    search_tokens: int  # of these prompts
    baselines: tuple[str, ...]  # formats in which `optimum-cli` stores the unpruned model


LANGUAGE_MODEL = Defaults(
    name=CAUSAL_LM.name,
    kind=CAUSAL_LM,
    adapts=True,
    block=_ATTENTION,
    target="kl<=0.15",  # docs/benchmarks/recovery.md has the loss after the recovery
    weight_format="int4_sym",  # trained for, at equal accuracy faster than INT8: docs/benchmarks/recovery.md
    prompt_len=256,
    new_tokens=64,
    held_out=400,
    batch=16,
    micro_batch=4,  # 16 take 9.2 instead of 4.3 GB in a recovery at 135M, and as long (docs/benchmarks/compress.md)
    recovery_tokens=100_000,  # as in docs/benchmarks/recovery.md
    prompts=(16, 64),
    search_tokens=3_000,  # an evaluation takes some five seconds on two cores at 135M
    baselines=("int8",),
)
EMBEDDING_MODEL = Defaults(
    name=EMBEDDING.name,
    kind=EMBEDDING,
    adapts=False,
    block=_LAYER,
    target="kl<=0.2",  # two of MiniLM's six layers (0.169): docs/benchmarks/embeddings.md
    weight_format="int8_sym",  # INT4 is no faster: docs/benchmarks/embeddings.md
    prompt_len=128,
    new_tokens=None,
    held_out=1500,
    batch=32,
    micro_batch=32,
    recovery_tokens=1_000_000,  # as in docs/benchmarks/embeddings.md
    prompts=(64, 256),
    search_tokens=10_000,
    baselines=("int8", "fp32"),
)
# a sixth of the layers (docs/benchmarks/embeddings.md): distances of two classifiers or rerankers have no common scale
CLASSIFIER = replace(EMBEDDING_MODEL, name=CLASSIFICATION.name, kind=CLASSIFICATION, target="macs<=0.84x")
RERANKER = replace(CLASSIFIER, name="reranker")


def defaults_of(source: Source) -> Defaults:
    """The defaults of a model."""
    kind = source.architecture.family.kind
    if kind is CLASSIFICATION and len(output_names(source.architecture.config)) == 1:
        return RERANKER
    return next(each for each in (LANGUAGE_MODEL, EMBEDDING_MODEL, CLASSIFIER) if each.kind is kind)


def resolve_options(defaults: Defaults, options: CompressOptions, source: Source) -> CompressOptions:
    """Fill in the defaults, and refuse options that mean nothing for a task or source."""
    problems = []
    for name, value in (("--prompt", options.prompt), ("--new-tokens", options.new_tokens), ("--metric", options.metric)):
        if value is not None and not defaults.kind.generates:
            problems.append(f"{name} {value}: a {defaults.name} generates no text; omit it")
    if options.epochs is not None and (source.adapter or not defaults.adapts):
        what = "the adapter" if source.adapter else f"a {defaults.name}"
        epochs = options.epochs if isinstance(options.epochs, str) else f"{options.epochs:g}"
        problems.append(f"--epochs {epochs}: {what} is compressed without fine-tuning; omit it")
    resolved = replace(
        options,
        weight_format=options.weight_format or defaults.weight_format,
        prompt_len=options.prompt_len or defaults.prompt_len,
        new_tokens=(options.new_tokens or defaults.new_tokens) if defaults.kind.generates else None,
    )
    problems += context_errors(cost_settings(resolved), source.architecture.context)
    raise_all(f"{source.base.folder}: these options do not fit the model:", problems)
    return resolved


def cost_settings(options: CompressOptions) -> CostSettings:
    """The weight format, and how latencies are measured, of resolved options."""
    assert options.weight_format and options.prompt_len
    return CostSettings(options.weight_format, prompt_len=options.prompt_len, new_tokens=options.new_tokens or 0)


def check_head(source: Source) -> None:
    """Refuse a classifier without a head, in its base or an adapter."""
    architecture, folder = source.architecture, source.base.folder
    tensors = open_tensors(folder)
    tensors.rename(architecture.family)
    if architecture.head.keys() - tensors.shapes.keys() - source.replaced().keys():
        raise LonasEdgeError(
            f"{source.folder}: has no classification head; fine-tune it first: lonas-edge train --model {folder} "
            f"--data TASK.tsv --output ADAPTER. Then compress ADAPTER. {EMBEDS}"
        )
