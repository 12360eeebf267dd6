"""SOURCE on the command line: a base model, an adapter and a search space.

SOURCE is a super-adapter directory; any PEFT adapter plus --model and --nncf-config (a plain LoRA adapter needs no search
space); or a base model. Each may be a directory or a hub id.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lonas_edge.data.glue import TASKS as GLUE
from lonas_edge.data.pooling import Pooling, embeds, pooling_of
from lonas_edge.data.registry import open_data
from lonas_edge.data.task import MAX_LENGTH, Task
from lonas_edge.data.templates import PromptRecord
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import (
    CLASSIFICATION,
    EMBEDDING,
    FAMILIES,
    MODEL_KINDS,
    ModelKind,
    family_of,
    output_names,
)
from lonas_edge.files import read_json, sha256
from lonas_edge.network import adapters
from lonas_edge.network.adapters import AdapterConfig
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.channel_order import ChannelOrder, order_of_space, read_channel_order
from lonas_edge.network.configuration import parse_config, read_config, read_generation_config
from lonas_edge.network.location import SEARCH_SPACE, TRAINING, Located, locate, locate_base
from lonas_edge.network.modeling import check_builds
from lonas_edge.network.tokenizer import load_tokenizer, own_chat_template
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.network.vocabulary_record import original_hashes
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import SearchSpace, read_search_space
from lonas_edge.space.selection import select, width_errors
from lonas_edge.space.subnetwork import Sizes, Subnetwork, unpruned


@dataclass(frozen=True)
class Source:
    """The network of a command. `adapter` and `adapter_config` are None for a base model.

    Base and adapter are stored in the base's channel order; `order` is that of the super-network, or of the search space.
    `training` is the record of the training, if there is one. `head` has the fields of the base's config.json that the task
    and the adapter's own head change. `pooling` is that of a sentence embedding model.
    """

    base: Located
    adapter: Located | None
    adapter_config: AdapterConfig | None
    elasticity: Elasticity
    order: ChannelOrder = field(default_factory=ChannelOrder)
    training: TrainingRecord | None = None
    head: Mapping[str, Any] = field(default_factory=dict)
    pooling: Pooling | None = None

    @property
    def architecture(self) -> Architecture:
        """The base model's shapes."""
        return self.elasticity.architecture

    def base_config(self) -> dict[str, Any]:
        """Content of the base's config.json, with the changes by the task and the adapter's own head."""
        return {**read_config(self.base.folder), **self.head}

    @property
    def space(self) -> SearchSpace:
        """The search space; without groups for a plain LoRA adapter or a base model."""
        return self.elasticity.space

    @property
    def folder(self) -> Path:
        """The adapter's directory, or the base's without one; for messages."""
        return (self.adapter or self.base).folder

    @property
    def own(self) -> Subnetwork | None:
        """The sub-network that the adapter was fine-tuned for; None for a super-adapter."""
        made = self.training.recovered if self.training else None
        return self.subnetwork(made.widths, made.subnetwork) if made and len(made.widths) == len(self.space.groups) else None

    @property
    def ordered_by_space(self) -> bool:
        """Whether the channel order is that of the search space, made by `space --data` after the training."""
        return bool(self.order) and not (self.folder / ORDER).exists()

    @property
    def trained_as(self) -> str | None:
        """The weight format of quantization-aware training (`train --weight-format`), or None."""
        weight_format: str | None = self.training.options.get("weight_format") if self.training else None
        return weight_format

    @property
    def int8_layers(self) -> tuple[str, ...]:
        """Module paths of the layers that quantization-aware training kept in INT8."""
        return self.training.int8_layers if self.training else ()

    @property
    def prompt_record(self) -> PromptRecord:
        """The prompts of the adapter's training."""
        space = self.space.hash if self.adapter else None
        if self.training is None:
            return PromptRecord(chat=own_chat_template(self.adapter.folder) if self.adapter else None, space=space)
        return PromptRecord(self.training.prompt, self.training.chat_template, space)

    def subnetwork(self, widths: Sequence[int], name: str = "") -> Subnetwork:
        """The sub-network of these widths, one per group in group order."""
        return Subnetwork(self.elasticity, tuple(widths), name)

    def select(self, choice: str | None = None) -> Subnetwork:
        """Pick a sub-network, see `space.subnetwork.select`; None is the one that the adapter was fine-tuned for, if any."""
        own = self.own
        if not self.space.groups and choice not in (None, "maximal"):
            raise self.without_space(f"there is no sub-network {choice!r} but the maximal one")
        if own is None:
            return select(self.elasticity, choice)
        if choice is None or select(self.elasticity, choice).canonical == own.canonical:
            return own
        raise LonasEdgeError(
            f"{self.folder}: fine-tuned for its {own.name} sub-network alone (`train --from`), not for {choice!r}. Omit "
            "--subnet, or pass the super-adapter."
        )

    def open_data(self, data: Path, prompt: str | None = None, labels: bool = False, max_length: int | None = None) -> Task:
        """Open data for the model with the prompt template and the GLUE task of its training, see `data.registry.open_data`."""
        glue = self.training.task if self.training and data.suffix.lower() == ".tsv" else None
        how: dict[str, Any] = {"glue": glue, "labels": labels, "prompt": prompt, "max_length": max_length}
        opened = open_data(data, self.architecture, self.pooling, **how, record=self.prompt_record)
        outputs = len(output_names(self.architecture.config))
        if opened.options.glue and (error := opened.options.glue.head_error(outputs)):
            raise LonasEdgeError(f"{self.folder}: {error}. Pass data of the task that it was trained on.")
        return opened

    @property
    def space_command(self) -> str:
        """The command that creates a search space for this source."""
        adapter = f"--adapter {self.adapter.reference} " if self.adapter else ""
        return f"lonas-edge space {adapter}--model {self.base.reference} --output space.json"

    def without_space(self, consequence: str) -> LonasEdgeError:
        """The error for a source without a search space, with the command that creates one."""
        return LonasEdgeError(
            f"{self.folder}: no search space, so {consequence}. Create one with `{self.space_command}` and pass "
            "--nncf-config space.json."
        )

    def ranks(self) -> dict[str, int]:
        """The adapter's rank by module path."""
        return self.adapter_config.ranks(self.architecture) if self.adapter_config else {}

    def replaced(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the base's tensors that the adapter replaces."""
        return self.adapter_config.replaced(self.architecture) if self.adapter_config else {}

    @property
    def unties(self) -> bool:
        """Whether merging gives the head of a tied base a weight of its own."""
        return self.adapter_config is not None and self.adapter_config.unties(self.architecture)

    @property
    def unpruned(self) -> Subnetwork:
        """The whole LoRA model, which may be larger than the maximal network of the search space."""
        return unpruned(self.architecture)

    def sizes(self, subnetwork: Subnetwork, seq_len: int | None = None) -> Sizes:
        """Sizes of a sub-network, or of `unpruned`; MACs at the length of the search space when `seq_len` is None."""
        length = seq_len or self.space.sequence_length or self.architecture.family.kind.sequence_length
        return subnetwork.sizes(self.ranks(), length, self.unties)


def check_base(
    training: TrainingRecord | None, hashes: Mapping[str, str], base: Path, hint: str = "Pass the right one with --model."
) -> None:
    """Raise if files of a base (SHA-256 by name) differ from those of the adapter's training; only common files count.

    A base with a trimmed vocabulary stands for the models that it was trimmed from.
    """
    trained = training.base.sha256 if training else {}
    errors: list[str] = []
    for possible in [hashes, *(original_hashes(base) if trained else [])]:
        different = [name for name in sorted(trained.keys() & possible.keys()) if trained[name] != possible[name]]
        errors = [f"{name}: SHA-256 {possible[name][:12]}, but {trained[name][:12]} when it was trained" for name in different]
        if not errors:
            return
    raise_all(f"{base}: not the base that the adapter was trained on:", errors, hint)


def open_source(
    source: str | None,
    model: str | None = None,
    nncf_config: Path | None = None,
    weights: bool = True,
    outputs: Sequence[str] | None = None,
    elastic: bool = True,
    kind: ModelKind | None = None,
) -> Source:
    """Read the configurations of a SOURCE and check that they fit; weights are not read yet.

    Args:
        source: A super-adapter, a PEFT adapter, or a base model; see `locate`.
        model: The base model; when None the one in the adapter's configuration.
        nncf_config: The search space; when None the super-adapter's own, if any.
        weights: Whether weights will be needed.
        outputs: Names of a new head's outputs; those of the adapter when None.
        elastic: Whether the adapter's own search space is read.
        kind: Kind of a base model without an adapter, where its model type has several; by its files when None.
    """
    located = locate(source or model or "", weights)
    adapter, adapter_config, training, base = None, None, None, located
    if (located.folder / adapters.CONFIG).exists():
        adapter, adapter_config = located, AdapterConfig.read(located.folder)
        training = TrainingRecord.read(adapter.folder / TRAINING) if (adapter.folder / TRAINING).exists() else None
        base = locate_base(adapter_config, training is not None, model, weights)
    elif source is not None and model not in (None, source):
        raise LonasEdgeError(f"{located.folder}: no {adapters.CONFIG}; with --model, SOURCE is a PEFT adapter directory")
    if elastic and nncf_config is None and adapter:
        nncf_config = _own_space(adapter.folder, training)
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    kind = _kind_of_adapter(adapter_config) if adapter_config else kind
    folders = [each.folder for each in (adapter, base) if each]
    head_outputs = outputs or (_head_outputs(adapter.folder, training) if adapter else None)
    architecture, head = _read_architecture(
        base.folder, kind or (EMBEDDING if any(map(embeds, folders)) else None), head_outputs
    )
    if adapter_config:
        _refuse_other_task(adapter_config, architecture)
    if weights:
        check_builds(architecture, base.folder / "config.json")
    elasticity = bind(architecture, space, str(nncf_config))
    order = read_channel_order(adapter.folder, architecture) if adapter else ChannelOrder()
    if not order and not (training and training.search_space):
        order = order_of_space(space, architecture, nncf_config)
    check_base(training, {"config.json": sha256(base.folder / "config.json")}, base.folder)
    pooling = _read_pooling(folders, architecture, weights) if architecture.family.kind is EMBEDDING else None
    opened = Source(base, adapter, adapter_config, elasticity, order, training, head, pooling)
    if training and training.recovered and training.recovered.widths and elastic:
        raise_all(
            f"{located.folder / TRAINING}: fine-tuned for a sub-network that is not in the search space:",
            width_errors(elasticity, training.recovered.widths, training.search_space),
            "Use the search space of the training.",
        )
    if adapter_config:
        raise_all(
            f"{nncf_config}: the search space does not fit the adapter {adapter_config.path}:",
            adapters.rank_errors(elasticity, opened.ranks()),
            f"Create one for this adapter with `{opened.space_command}`.",
        )
    return opened


def _own_space(adapter: Path, training: TrainingRecord | None) -> Path | None:
    """The search space in a super-adapter's directory; None for another adapter."""
    if (adapter / SEARCH_SPACE).exists():
        return adapter / SEARCH_SPACE
    if training and training.search_space:
        raise LonasEdgeError(
            f"{adapter / SEARCH_SPACE}: missing; the super-adapter was trained with a search space. Copy the super-adapter "
            "again, or pass --nncf-config FILE."
        )
    return None


def _read_architecture(
    base: Path, kind: ModelKind | None, outputs: Sequence[str] | int | None
) -> tuple[Architecture, dict[str, Any]]:
    """Read a base's shapes, and the fields of its config.json that change with its kind and the outputs of another head."""
    path = base / "config.json"
    content = read_config(base)
    config = parse_config(content, str(path))
    read_generation_config(base, getattr(config, "vocab_size", None))
    family, fields = family_of(config.model_type, kind, config.architectures or ()), {}
    if family:
        fields = {**family.kind.head_fields(config, outputs), **family.class_fields(config.model_type)}
        if family.ends_at_padding and config.pad_token_id is None and (tokenizer := load_tokenizer(base)):
            fields["pad_token_id"] = tokenizer.pad_token_id
    _refuse_other_head(config, path)
    if "id2label" in fields:
        content.pop("num_labels", None)  # of another head, in old files
    config = parse_config({**content, **fields}, str(path)) if fields else config
    return Architecture.from_config(config, str(base)), fields


def _read_pooling(folders: Sequence[Path], architecture: Architecture, warn: bool) -> Pooling:
    """Read an embedding model's pooling, and its longest text: that of its files, the tokenizer's, or the context."""
    pooling, tokenizer = pooling_of(*folders, warn=warn), folders[-1] / "tokenizer_config.json"
    if pooling.mode in getattr(architecture.family, "refused_poolings", ()):
        raise LonasEdgeError(
            f"{folders[0]}: pooling {pooling.mode}: the first token of a decoder sees no other token. Use mean or lasttoken."
        )
    content = read_json(tokenizer) if tokenizer.is_file() else {}
    limit = content.get("model_max_length", content.get("max_len"))
    known = limit if isinstance(limit, int | float) and limit >= 1 else math.inf
    return pooling.limit(known, architecture.context or MAX_LENGTH)


def _stated_kind(config: AdapterConfig) -> ModelKind | None:
    """The kind that an adapter names; None without one that is known."""
    return next((kind for kind in MODEL_KINDS if kind.peft == config.lora.task_type), None)


def _kind_of_adapter(config: AdapterConfig) -> ModelKind | None:
    """The kind that an adapter names, or that of a classifier's head in it; None if neither tells."""
    return _stated_kind(config) or (CLASSIFICATION if adapters.head_outputs(config.path.parent) else None)


def _head_outputs(adapter: Path, training: TrainingRecord | None) -> Sequence[str] | int | None:
    """Outputs of the adapter's head: names from the task of its training, else their number in its file."""
    task = GLUE.get(training.task or "") if training else None
    return task.outputs if task else (training.classes if training else ()) or adapters.head_outputs(adapter)


def _refuse_other_head(config: Any, path: Path) -> None:
    """Raise if the model is a classifier of a model type whose classifiers are not supported."""
    kinds = {family.kind for family in FAMILIES if config.model_type in family.model_types}
    heads = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    if heads and EMBEDDING in kinds and CLASSIFICATION not in kinds:
        raise LonasEdgeError(
            f"{path}: {', '.join(heads)}: classifiers and rerankers of {config.model_type} are not "
            "supported; expected an embedding model."
        )


def _refuse_other_task(config: AdapterConfig, architecture: Architecture) -> None:
    """Raise if the adapter's task is known and not the model's."""
    ours, theirs = architecture.family.kind, _stated_kind(config)
    if theirs and theirs != ours:
        hint = "Pass its base with --model."
        if theirs.generates and len(output_names(architecture.config)) == 1:
            hint = "Merge an adapter of a reranker that compares tokens first (PEFT's merge_and_unload), and pass the result."
        raise LonasEdgeError(
            f"{config.path}: task_type {theirs.peft!r}, an adapter of a {theirs.name}; the model "
            f"({architecture.model_type}) is a {ours.name}, {ours.peft!r}. {hint}"
        )
