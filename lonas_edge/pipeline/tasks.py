"""How models of each task are compressed by default and reported, one object per task; and which options fit them."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from lonas_edge.bench.statistics import Interval
from lonas_edge.data.pooling import EMBEDS
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import BLOCK_KINDS, CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, output_names
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.source import Source
from lonas_edge.pipeline.options import NONE, CompressOptions
from lonas_edge.search.cost import CostSettings, context_errors
from lonas_edge.tables import MISSING
from lonas_edge.training.options import AUTO

_ATTENTION, _MLP, _LAYER = BLOCK_KINDS[:3]


class Column(NamedTuple):
    """A figure of each network."""

    name: str  # in records
    title: str
    digits: int
    meaning: str
    unit: str = ""  # of differences


_SPEARMAN = Column("spearman", "Spearman", 1, "rank correlation with the labels, percent", ", points")
_FROM_FP32 = "from the unpruned model in fp32"
ANSWER_TIME = Column("answer", "answer", 0, "time of a greedy answer of at most 256 tokens to a held-out prompt")


@dataclass(frozen=True)
class Profile:
    """How models of a task are compressed and reported."""

    name: str  # in records and messages
    kind: ModelKind
    adapts: bool  # whether a base model is fine-tuned first; other models are finished, and are compressed as they are
    target: str  # `auto`
    weight_format: str  # of the result
    prompt_len: int  # tokens of the latencies
    new_tokens: int | None  # generated tokens of the latencies
    held_out: int  # examples, at most
    batch: int  # examples of a training step
    short_batch: int  # of a step of the recovery at most, where `step_tokens` allow them
    step_tokens: int
    micro_tokens: int  # that are computed at once, padding included
    recovery_tokens: int
    recovery_answers: tuple[int, int] | None  # at least: tokens of answers, or examples, whichever is less
    prompts: tuple[int, int]  # of the search, at least and at most
    search_tokens: int  # of these prompts
    baselines: tuple[str, ...]  # formats in which `optimum-cli` stores the unpruned model
    qualities: tuple[Column, ...]  # in the order of tables; plots show the first one
    latencies: tuple[Column, ...]  # in the order of tables; plots and sentences have the last one
    distance: str  # that the search bounds
    loss: str  # of trainings
    lengths: str  # of the latencies, with two places for numbers
    usage: str  # of the model in the directory `{}`

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of encoders, which need labels; none of language models."""
        return () if self.kind.generates else tuple(column.name for column in self.qualities[1:])


LANGUAGE_MODEL = Profile(
    name=CAUSAL_LM.name,
    kind=CAUSAL_LM,
    adapts=True,
    target="kl<=0.005",  # of texts, and of too few answers for a metric: docs/benchmarks/compress.md
    weight_format="int4_sym",  # trained for, at equal accuracy faster than INT8: docs/benchmarks/recovery.md
    prompt_len=256,
    new_tokens=64,
    held_out=400,
    batch=16,
    short_batch=64,  # a step of the recovery rounds all weights, also for few tokens: docs/benchmarks/recovery.md
    step_tokens=1500,
    micro_tokens=4096,
    recovery_tokens=120_000,  # docs/benchmarks/recovery.md
    recovery_answers=(40_000, 900),  # with long prompts; likewise
    prompts=(10, 64),  # ten rank networks as 80 do: docs/benchmarks/search.md
    search_tokens=3_000,  # an evaluation takes some five seconds on two cores at 135M
    baselines=("int8",),
    qualities=(
        Column("loss", "held-out loss", 3, "nats per learned token"),
        Column("accuracy", "token accuracy", 2, "learned tokens that are the most likely ones, percent", ", points"),
    ),
    latencies=(Column("ttft", "TTFT", 1, "time to first token"), Column("tpot", "TPOT", 2, "time per output token")),
    distance="KL divergence",
    loss="loss in nats per learned token",
    lengths="{} prompt tokens, {} generated tokens",
    usage="for OpenVINO; try it with `lonas-edge chat {}`",
)
EMBEDDING_MODEL = Profile(
    name=EMBEDDING.name,
    kind=EMBEDDING,
    adapts=False,
    target="kl<=0.2",  # two of MiniLM's six layers (0.169): docs/benchmarks/embeddings.md
    weight_format="int8_sym",  # INT4 is no faster: docs/benchmarks/embeddings.md
    prompt_len=128,
    new_tokens=None,
    held_out=1500,
    batch=32,
    short_batch=32,
    step_tokens=0,
    micro_tokens=32768,
    recovery_tokens=1_000_000,  # as in docs/benchmarks/embeddings.md
    recovery_answers=None,
    prompts=(64, 256),
    search_tokens=10_000,
    baselines=("int8", "fp32"),
    qualities=(Column("distance", "cosine distance", 4, _FROM_FP32), _SPEARMAN),
    latencies=(Column("latency", "latency", 2, "of a text"),),
    distance="cosine distance",
    loss="cosine distance",
    lengths="texts of {} tokens, one at a time",
    usage="for OpenVINO; its README.md says how to use it",
)
CLASSIFIER = replace(
    EMBEDDING_MODEL,
    name=CLASSIFICATION.name,
    kind=CLASSIFICATION,
    # a sixth of the layers (docs/benchmarks/embeddings.md): distances of two classifiers or rerankers have no common scale
    target="macs<=0.84x",
    qualities=(
        Column("distance", "KL", 4, f"divergence of the class probabilities {_FROM_FP32}, nats"),
        Column("accuracy", "accuracy", 1, "examples whose label is the most likely class, percent", ", points"),
    ),
    distance="KL divergence",
    loss="KL in nats",
)
RERANKER = replace(
    CLASSIFIER,
    name="reranker",
    qualities=(Column("distance", "squared distance", 4, f"of the scores {_FROM_FP32}"), _SPEARMAN),
    distance="squared distance of scores",
    loss="squared distance",
)
PROFILES = {profile.name: profile for profile in (LANGUAGE_MODEL, EMBEDDING_MODEL, CLASSIFIER, RERANKER)}


def profile_of(source: Source) -> Profile:
    """The profile of a model."""
    kind = source.architecture.family.kind
    reranks = kind is CLASSIFICATION and len(output_names(source.architecture.config)) == 1
    profile = RERANKER if reranks else PROFILES[kind.name]
    if kind.generates or any(block.whole for block in source.architecture.blocks.values()):
        return profile
    sizes = {name: getattr(LANGUAGE_MODEL, name) for name in ("recovery_tokens", "micro_tokens")}
    target = "macs<=0.67x" if profile is CLASSIFIER else profile.target
    return replace(profile, target=target, **sizes)  # a decoder: docs/benchmarks/embeddings.md


def width_ratios(source: Source) -> tuple[float, ...]:
    """The MLP widths of the search space, of language models alone: docs/benchmarks/structure.md."""
    return (1, 0.75, 0.5, 0.25) if source.architecture.family.kind.generates else (1,)


def removed_kinds(source: Source) -> tuple[str, ...]:
    """The kinds of blocks that may be removed: attention and MLP, or whole layers where neither can be removed alone.

    Classifiers that are decoders lose their last layers: docs/benchmarks/embeddings.md.
    """
    known = {block.kind for block in source.architecture.blocks.values()}
    if known and source.architecture.family.kind is CLASSIFICATION:
        return (_LAYER,)
    return tuple(kind for kind in (_ATTENTION, _MLP) if kind in known) or ((_LAYER,) if _LAYER in known else (_ATTENTION, _MLP))


def resolve_options(profile: Profile, options: CompressOptions, source: Source) -> CompressOptions:
    """Fill in the defaults, and refuse options that mean nothing for a task or source."""
    problems = []
    for name, value in (
        ("--template", options.template),
        ("--max-length", options.max_length),
        ("--metric", options.metric),
        ("--draft", options.draft if options.draft == AUTO else None),
    ):
        if value is not None and not profile.kind.generates:
            problems.append(f"{name} {value}: a {profile.name} generates no text; omit it")
    if options.epochs is not None and (source.adapter or not profile.adapts):
        what = "the adapter" if source.adapter else f"a {profile.name}"
        epochs = options.epochs if isinstance(options.epochs, str) else f"{options.epochs:g}"
        problems.append(f"--epochs {epochs}: {what} is compressed without fine-tuning; omit it")
    resolved = replace(
        options,
        weight_format=options.weight_format or profile.weight_format,
        draft=options.draft or (AUTO if profile.kind.generates else NONE),
        prompt_len=options.prompt_len or profile.prompt_len,
        new_tokens=(options.new_tokens or profile.new_tokens) if profile.kind.generates else None,
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
            f"--data FILE --output ADAPTER. Then compress ADAPTER. {EMBEDS}"
        )


def interval(value: Interval | None, digits: int, sign: str = "", unit: str = "") -> str:
    """Format a value with its interval, such as `0.65x [0.63, 0.67]`; `sign` is `+` for differences."""
    if value is None:
        return MISSING
    middle, low, high = (f"{number:{sign}z.{digits}f}" for number in (value.value, value.low, value.high))
    return f"{middle}{unit} [{low}, {high}]"
