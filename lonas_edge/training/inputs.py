"""Inputs of a training: base model, search space and data, opened and checked before the model is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

from peft.utils.constants import SEQ_CLS_HEAD_NAMES

from lonas_edge.data.glue import GlueTask, glue_of
from lonas_edge.data.registry import Files, open_data
from lonas_edge.data.task import Task
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, output_names
from lonas_edge.network.adapters import AdapterConfig
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.location import SEARCH_SPACE, Located
from lonas_edge.network.source import Source, open_source
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import SearchSpace, read_search_space
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.training.teacher import Teacher, open_teacher


@dataclass(frozen=True)
class Inputs:
    """Inputs of a training."""

    source: Source  # the base model, or the adapter to train further
    elasticity: Elasticity  # the search space, bound to the base; without groups for plain LoRA
    nncf_config: Path | None  # the search space's file
    data: Task  # the training data
    subnetwork: Subnetwork | None = None  # the one to recover; None to train a new adapter
    teacher: Teacher | None = None  # the frozen teacher
    eval_data: Task | None = None  # held-out data

    @property
    def base(self) -> Located:
        """The base model."""
        return self.source.base

    @property
    def architecture(self) -> Architecture:
        """The base model's shapes."""
        return self.elasticity.architecture

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.elasticity.space

    @property
    def paths(self) -> list[Path | None]:
        """All files and directories that the training reads."""
        files = [*self.data.files, *(self.eval_data.files if self.eval_data else ())]
        folders = [self.base.folder, self.source.folder, *([self.teacher.folder] if self.teacher else [])]
        return [*folders, *(file.path for file in files), self.nncf_config]

    def with_prompt(self, prompt: str | None) -> "Inputs":
        """Take a prompt template for all data."""
        eval_data = self.eval_data.with_prompt(prompt) if self.eval_data else None
        return replace(self, data=self.data.with_prompt(prompt), eval_data=eval_data)


def open_inputs(model: str, data: Files, nncf_config: Path | None = None, elastic: bool = True) -> Inputs:
    """Open base, search space and data of a new adapter, and check that they fit; no weights are read."""
    glue = glue_of([data] if isinstance(data, Path) else [path for path, _ in data])
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    space = space if elastic else replace(space, groups=())  # its stages stay: the baseline is trained as long
    source = open_source(None, model, outputs=glue.outputs if glue else None, kind=CLASSIFICATION if glue else None)
    if source.adapter:
        raise LonasEdgeError(
            f"{source.adapter.folder}: is an adapter, but --model takes a base model. Use --from to train an adapter further."
        )
    read = open_data(data, source.architecture, source.pooling)
    if glue:
        _refuse_other_head(glue, source)
    return Inputs(source, bind(source.architecture, space, str(nncf_config)), nncf_config, read)


def open_recovery(
    start: str,
    data: Files,
    subnet: str | None = None,
    model: str | None = None,
    nncf_config: Path | None = None,
) -> Inputs:
    """Open adapter, sub-network and data of a recovery; no weights are read."""
    source = open_source(start, model, nncf_config)
    if not source.adapter and not (source.space.groups and subnet):
        raise LonasEdgeError(
            f"{source.folder}: is a base model. Pass --nncf-config and --subnet to recover one of its sub-networks, or train a "
            "new adapter with --model."
        )
    read = open_data(data, source.architecture, source.pooling, record=source.prompt_record)
    trained = source.training.task if source.training else None
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
    return Inputs(source, source.elasticity, space, read, source.select(subnet))


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
    teacher = open_teacher(reference, inputs.base, inputs.architecture, model, inputs.data.pooling)
    return replace(inputs, teacher=teacher)


def with_eval_data(inputs: Inputs, path: Path) -> Inputs:
    """Add held-out data of the training's kind."""
    return replace(inputs, eval_data=inputs.data.read([(path, 1.0)]))
