"""Inputs of a training: base model, search space, data and a frozen teacher, opened and checked before the model is loaded.

A teacher is loaded once, merged, in the dtype of the training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import PreTrainedModel

from lonas_edge.data.classes import OwnLabels, own_classes
from lonas_edge.data.glue import GlueTask, glue_of
from lonas_edge.data.pooling import EMBEDS, Pooling, embeds, read_pooling
from lonas_edge.data.registry import Files, open_data
from lonas_edge.data.task import Task
from lonas_edge.data.texts import has_pairs
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, EMBEDDING, casefold, family_of_config, output_names
from lonas_edge.network.adapters import CONFIG, AdapterConfig, adapter_file
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.configuration import read_config
from lonas_edge.network.location import SEARCH_SPACE, Located, locate
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import empty_model, set_parameter
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import load_tokenizer, require_tokenizer, tokenizer_differences
from lonas_edge.network.vocabulary_record import VOCABULARY, VocabularyRecord, keep_tokens, vocabulary_of
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import bind
from lonas_edge.space.search_space import SearchSpace, read_search_space
from lonas_edge.space.subnetwork import Subnetwork


@dataclass(frozen=True)
class Teacher:
    """A frozen model."""

    name: str  # its name without local paths, for records
    folder: Path  # its directory
    base: Path  # the directory of its base, which describes its tokens
    files: tuple[Path, ...]  # its files, without those of the base that is trained on; if it is that base, its config.json
    load: Callable[[torch.dtype], PreTrainedModel]  # reads its weights, in a dtype
    architecture: Architecture


@dataclass(frozen=True)
class Inputs:
    """Inputs of a training."""

    source: Source  # the base model, or the adapter to train further; its search space has no groups for plain LoRA
    nncf_config: Path | None  # the search space's file
    data: Task  # the training data
    subnetwork: Subnetwork | None = None  # the one to recover; None to train a new adapter
    teacher: Teacher | None = None  # the frozen teacher
    eval_data: Task | None = None  # held-out data

    @property
    def paths(self) -> list[Path | None]:
        """All files and directories that the training reads."""
        files = [*self.data.files, *(self.eval_data.files if self.eval_data else ())]
        folders = [self.source.base.folder, self.source.folder, *([self.teacher.folder] if self.teacher else [])]
        return [*folders, *(file.path for file in files), self.nncf_config]

    def with_prompt(self, prompt: str | None) -> "Inputs":
        """Take a prompt template for all data."""
        eval_data = self.eval_data.with_prompt(prompt) if self.eval_data else None
        return replace(self, data=self.data.with_prompt(prompt), eval_data=eval_data)


def open_inputs(model: str, data: Files, nncf_config: Path | None = None, elastic: bool = True, labels: bool = True) -> Inputs:
    """Open base, search space and data of a new adapter, and check that they fit; no weights are read.

    With `labels`, labels of texts are learned by a new head; a teacher replaces them.
    """
    paths = [data] if isinstance(data, Path) else [path for path, _ in data]
    own = _new_classes(model, paths) if labels else None
    glue = own or glue_of(paths)
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    space = space if elastic else replace(space, groups=())  # its stages stay: the baseline is trained as long
    source = open_source(None, model, outputs=glue.outputs if glue else None, kind=CLASSIFICATION if glue else None)
    if source.architecture.family.kind.generates and has_pairs(paths[0]):
        source = open_source(None, model, kind=EMBEDDING)
    if source.adapter:
        raise LonasEdgeError(
            f"{source.adapter.folder}: is an adapter, but --model takes a base model. Use --from to train an adapter further."
        )
    read = open_data(data, source.architecture, source.pooling, own=own)
    if glue:
        _refuse_other_head(glue, source)
    elasticity = bind(source.architecture, space, str(nncf_config))
    return Inputs(replace(source, elasticity=elasticity), nncf_config, read)


def _new_classes(model: str, paths: Sequence[Path]) -> OwnLabels | None:
    """The classes of data with labels that a new head learns.

    None where the base has a head or sentence-transformers' files, or is of a family without classifiers.
    """
    folder = locate(model, weights=True).folder
    if embeds(folder) or not (folder / "config.json").exists():
        return None
    content = read_config(folder)
    family, classifier = family_of_config(content), family_of_config(content, CLASSIFICATION)
    if not classifier or classifier.kind is not CLASSIFICATION:
        return None
    headed = family is classifier and f"{classifier.head}.weight" in open_tensors(folder).shapes
    return None if headed else own_classes(paths)


def open_recovery(
    start: str, data: Files, subnet: str | None = None, model: str | None = None, nncf_config: Path | None = None
) -> Inputs:
    """Open adapter, sub-network and data of a recovery; no weights are read."""
    source = open_source(start, model, nncf_config)
    if not source.adapter and not (source.space.groups and subnet):
        raise LonasEdgeError(
            f"{source.folder}: is a base model. Pass --nncf-config and --subnet to recover one of its sub-networks, or train a "
            "new adapter with --model."
        )
    read = open_data(data, source.architecture, source.pooling, record=source.prompt_record)
    trained = source.training.task or ", ".join(source.training.classes) or None if source.training else None
    if glue := read.options.glue:
        _refuse_other_head(glue, source)
        if trained not in (None, glue.name):
            raise LonasEdgeError(
                f"{source.folder}: trained on {trained}, and the data are of {glue.name}. Pass data of the task that it was "
                "trained on."
            )
    if source.adapter_config:
        _refuse_other_parameters(source.adapter_config, source.architecture)
    space = (nncf_config or source.folder / SEARCH_SPACE) if source.space.groups else None
    return Inputs(source, space, read, source.select(subnet))


def _refuse_other_head(glue: GlueTask, source: Source) -> None:
    """Refuse an adapter or a base whose head was trained for another number of outputs."""
    if error := glue.head_error(len(output_names(source.architecture.config))):
        raise LonasEdgeError(f"{source.folder}: {error}. Pass data of the task that it was trained on.")
    tensors = open_tensors(source.base.folder)
    tensors.rename(source.architecture.family)
    name = f"{source.architecture.family.head}.weight"
    if name in tensors.shapes and (error := glue.head_error(tensors.shapes[name][0])):
        raise LonasEdgeError(
            f"{source.base.folder}: {error} ({tensors.file_of(name).name}). Use a base without a head, or data of another task."
        )


def _refuse_other_parameters(config: AdapterConfig, architecture: Architecture) -> None:
    """Refuse parameters besides LoRA factors and the head of a classifier."""
    heads = [*SEQ_CLS_HEAD_NAMES, *architecture.family.head_modules] if architecture.family.kind.new_head else []
    values = {name: getattr(config.lora, name) for name in ("bias", "lora_bias")}
    values["modules_to_save"] = [name for name in config.lora.modules_to_save or () if name not in heads]
    others = [f"{name} = {value!r}" for name, value in values.items() if value not in ("none", False, [])]
    raise_all(
        f"{config.path}: --from trains LoRA factors and the head of a classifier, but this adapter has more:",
        others,
        "Export it as it is, or train a new adapter.",
    )


def with_teacher(inputs: Inputs, reference: str, model: str | None = None) -> Inputs:
    """Add a frozen teacher; its weights are not read yet. `model` is the base of an adapter, by default the one it names."""
    teacher = open_teacher(reference, inputs.source.base, inputs.source.architecture, model, inputs.data.pooling)
    return replace(inputs, teacher=teacher)


def with_eval_data(inputs: Inputs, path: Path) -> Inputs:
    """Add held-out data of the training's kind."""
    return replace(inputs, eval_data=inputs.data.read([(path, 1.0)]))


def open_teacher(
    reference: str, base: Located, student: Architecture, model: str | None = None, pooling: Pooling | None = None
) -> Teacher:
    """Open a teacher and compare its task, head and tokens with those of the training; no weights are read.

    Args:
        reference: An adapter or a model, such as an exported checkpoint.
        base: The base of the training.
        student: Its shapes, with the head that is trained.
        model: The base, if the reference is an adapter; by default the one that it names.
        pooling: That of the training, for an embedding model.
    """
    try:
        source = open_source(reference, model)
    except LonasEdgeError:
        if model or not (Path(reference) / CONFIG).is_file():
            raise
        source = open_source(reference, str(base.folder))  # an adapter whose own base is missing
    teacher = _make_teacher(source, base)
    _check_outputs(teacher, student, pooling)
    if teacher.base.resolve() == base.folder.resolve():
        return teacher
    trimmed = vocabulary_of(base.folder)
    if trimmed is None or teacher.architecture.config.vocab_size == student.config.vocab_size:
        _check_tokens(teacher, base.folder, student)
        return teacher
    kept = _kept_tokens(teacher, base.folder, trimmed)
    return replace(teacher, load=lambda dtype: keep_tokens(teacher.load(dtype), kept))


def _make_teacher(source: Source, base: Located) -> Teacher:
    chosen = source.own or source.subnetwork(source.elasticity.maximal, "maximal")
    model = MaterializedModel(source, chosen)  # compares every shape with the base's
    files = [source.base.folder / "config.json", *model.base.files]
    own = [] if source.base.folder.resolve() == base.folder.resolve() else files
    if source.adapter:
        own += [source.adapter.folder / CONFIG, adapter_file(source.adapter.folder)]
    named, load = source.adapter or source.base, partial(_load_merged, model)
    return Teacher(named.name, named.folder, source.base.folder, tuple(own or files[:1]), load, source.architecture)


def _load_merged(model: MaterializedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Load the materialized model tensor by tensor: merged in fp32, rounded once."""
    network = empty_model(model.config(), str(model.source.base.folder))
    for name in dict(network.named_parameters()):  # a tied head is not among them
        set_parameter(network, name, model.tensor(name).to(dtype))
    model.refuse_not_finite()
    network.tie_weights()
    return network


def _check_outputs(teacher: Teacher, student: Architecture, pooling: Pooling | None) -> None:
    """Refuse a teacher of another task, or with other outputs; a classifier's unnamed outputs are taken in order."""
    kind, other = student.family.kind, teacher.architecture.family.kind
    if other is not kind:
        hint = f" {EMBEDS}" if other is EMBEDDING else ""
        raise LonasEdgeError(f"{teacher.folder}: is a {other.name} and cannot teach a {kind.name}.{hint}")
    first, second = teacher.architecture.config, student.config
    errors, hint = list[str](), "Use a teacher that was trained on the same task."
    if pooling:
        hint = "Use the unpruned model as teacher."
        own = read_pooling(teacher.folder, teacher.base) or read_pooling(teacher.base) or pooling
        if first.hidden_size != second.hidden_size:
            errors.append(f"hidden_size {first.hidden_size}, and the training's model has {second.hidden_size}")
        if own.mode != pooling.mode:
            errors.append(f"pooling {own.mode}, and the training's model has {pooling.mode}")
    elif student.head and not kind.generates:
        theirs, ours = output_names(first), output_names(second)
        named = len(ours) > 1 and not any(name.startswith("LABEL_") for name in (*theirs, *ours))
        if len(theirs) != len(ours) or (named and casefold(theirs) != casefold(ours)):
            errors.append(f"outputs {', '.join(theirs)}, and those of the training are {', '.join(ours)}")
        segments = getattr(first, "type_vocab_size", 2), getattr(second, "type_vocab_size", 1)
        if segments[0] < segments[1]:
            errors.append("type_vocab_size {}, and the training's model has {}".format(*segments))
    raise_all(f"{teacher.folder}: cannot teach this training:", errors, hint)


def _check_tokens(teacher: Teacher, folder: Path, student: Architecture) -> None:
    """Refuse another vocabulary or tokenizer: logits are compared token by token."""
    theirs, ours = teacher.architecture.config.vocab_size, student.config.vocab_size
    errors = [f"its vocabulary has {theirs} entries, and that of {folder} has {ours}"] if theirs != ours else []
    tokenizers = load_tokenizer(teacher.base), load_tokenizer(folder)
    if tokenizers[0] is None and tokenizers[1] is not None:
        errors.append(f"{teacher.base} has no tokenizer to compare with that of {folder}")
    elif None not in tokenizers:
        errors += tokenizer_differences(*tokenizers, padding=False)  # padding is masked
    raise_all(
        f"{teacher.folder}: cannot teach {folder}; their tokens differ (the teacher's come first):",
        errors,
        "Use a --teacher of the same base, or of the same family with the same tokenizer.",
    )


def _kept_tokens(teacher: Teacher, student: Path, trimmed: VocabularyRecord) -> list[int]:
    """A teacher's ids of the tokens that a trimmed student has; one without them is refused."""
    theirs, ours = require_tokenizer(teacher.base, "a teacher"), require_tokenizer(student, "training")
    ids, known = trimmed.ids_in(teacher.base), {number: token for token, number in theirs.get_vocab().items()}
    pairs = zip(trimmed.kept, map(known.get, ids), ours.convert_ids_to_tokens(range(len(ids))), strict=True)
    raise_all(
        f"{teacher.folder}: cannot teach the trimmed {student}; their tokens differ (the teacher's come first):",
        [f"token {number}: {other!r} and {token!r}" for number, other, token in pairs if other != token],
        f"Use a --teacher with the vocabulary of {student / VOCABULARY}.",
    )
    return [number for number in ids if number is not None]
