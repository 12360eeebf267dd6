"""Inputs of a training: base model, search space and data, opened and checked before the model is loaded."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.constants import SEQ_CLS_HEAD_NAMES

from lonas_edge.data.glue import GlueTask, glue_of
from lonas_edge.data.language import MESSAGES
from lonas_edge.data.pooling import EMBEDS
from lonas_edge.data.registry import Files, open_data
from lonas_edge.data.task import Task
from lonas_edge.data.templates import CHAT
from lonas_edge.data.texts import PAIR
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, EMBEDDING, context_of, output_names
from lonas_edge.formats import dtype_of
from lonas_edge.network.adapters import CONFIG, AdapterConfig, adapter_file, load_adapter, rank_errors
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.checkpoints import open_base, open_tensors
from lonas_edge.network.source import SEARCH_SPACE, Located, Source, open_source
from lonas_edge.network.speed import faster_dtype
from lonas_edge.network.vocabulary_record import vocabulary_of
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import SearchSpace, read_search_space
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.teacher import Teacher, open_teacher

_LARGE = 1e9  # weights of linear layers


@dataclass(frozen=True)
class Start:
    """An adapter and the sub-network to recover, the maximal network of a plain LoRA adapter; or a base, for a new adapter."""

    source: Source
    subnetwork: Subnetwork

    @property
    def located(self) -> Located:
        """The adapter's directory, or the base's."""
        return self.source.adapter or self.source.base

    @property
    def config(self) -> AdapterConfig | None:
        """The adapter's configuration."""
        return self.source.adapter_config

    @property
    def files(self) -> list[Path]:
        """The adapter's files."""
        if not self.config:
            return []
        folder = self.located.folder
        order = [folder / ORDER] if (folder / ORDER).exists() else []
        return [folder / CONFIG, adapter_file(folder), *order]

    def options(self, options: TrainOptions) -> TrainOptions:
        """Take rank, alpha and target modules from the adapter; a new one is on all linear layers. Channels are not sorted."""
        if not self.config:
            architecture = self.source.architecture
            leaves = {name.rpartition(".")[2] for name in architecture.linears if architecture.split(name)[0]}
            return replace(options, target_modules=tuple(sorted(leaves)), reorder=False)
        lora = self.config.lora
        targets = [lora.target_modules] if isinstance(lora.target_modules, str) else sorted(lora.target_modules or ())
        return replace(options, rank=lora.r, alpha=float(lora.lora_alpha), target_modules=tuple(targets), reorder=False)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a training."""

    base: Located  # the base model
    elasticity: Elasticity  # the search space, bound to it; without groups for plain LoRA
    nncf_config: Path | None  # the search space's file
    data: Task  # the training data
    start: Start | None = None  # the adapter to recover; None to train a new one
    teacher: Teacher | None = None  # the frozen teacher
    eval_data: Task | None = None  # held-out data

    @property
    def architecture(self) -> Architecture:
        """The base model's shapes."""
        return self.elasticity.architecture

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.elasticity.space

    def with_prompt(self, prompt: str | None) -> "Inputs":
        """Take a prompt template for all data."""
        eval_data = self.eval_data.with_prompt(prompt) if self.eval_data else None
        return replace(self, data=self.data.with_prompt(prompt), eval_data=eval_data)


def open_inputs(
    model: str, data: Files, nncf_config: Path | None = None, elastic: bool = True, task: str | None = None
) -> Inputs:
    """Open base, search space and data of a new adapter, and check that they fit; no weights are read."""
    glue = glue_of(_paths(data), task)
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    space = space if elastic else replace(space, groups=())  # its stages stay: the baseline is trained as long
    source = open_source(None, model, outputs=glue.outputs if glue else None, kind=CLASSIFICATION if glue else None)
    if source.adapter:
        raise LonasEdgeError(
            f"{source.adapter.folder}: is an adapter, but --model takes a base model. Use --from to train an adapter further."
        )
    read = open_data(data, source.architecture, source.pooling, glue=task)
    if glue:
        _refuse_other_head(glue, source)
    return Inputs(source.base, bind(source.architecture, space, str(nncf_config)), nncf_config, read)


def open_recovery(
    start: str,
    data: Files,
    subnet: str | None = None,
    model: str | None = None,
    nncf_config: Path | None = None,
    task: str | None = None,
) -> Inputs:
    """Open adapter, sub-network and data of a recovery; no weights are read."""
    source = open_source(start, model, nncf_config)
    if not source.adapter and not (source.space.groups and subnet):
        raise LonasEdgeError(
            f"{source.folder}: is a base model. Pass --nncf-config and --subnet to recover one of its sub-networks, or train a "
            "new adapter with --model."
        )
    read = open_data(data, source.architecture, source.pooling, glue=task, record=source.prompt_record)
    trained = source.training.task if source.training else None
    if glue := read.options.glue:
        if trained not in (None, glue.name):
            raise LonasEdgeError(
                f"{source.folder}: trained on {trained}, and the data are of {glue.name}. Pass data of the task that it was "
                "trained on."
            )
        _refuse_other_head(glue, source)
    if source.adapter_config:
        _refuse_other_parameters(source.adapter_config, source.architecture)
    space = (nncf_config or source.folder / SEARCH_SPACE) if source.space.groups else None
    return Inputs(source.base, source.elasticity, space, read, Start(source, source.select(subnet)))


def _paths(data: Files) -> list[Path]:
    return [data] if isinstance(data, Path) else [path for path, _ in data]


def _refuse_other_head(glue: GlueTask, source: Source) -> None:
    """Refuse an adapter or a base whose head was trained for another number of outputs."""
    if misfit := glue.misfit(len(output_names(source.architecture.config))):
        raise LonasEdgeError(f"{source.folder}: {misfit}. Pass data of the task that it was trained on.")
    tensors = open_tensors(source.base.folder)
    tensors.rename(source.architecture.family)
    name = f"{source.architecture.family.head}.weight"
    if name in tensors.shapes and (misfit := glue.misfit(tensors.shapes[name][0])):
        raise LonasEdgeError(
            f"{source.base.folder}: {misfit} ({tensors.file_of(name).name}). Use a base without a head, or data of another "
            "task."
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


def with_defaults(inputs: Inputs, options: TrainOptions) -> TrainOptions:
    """Fill in the options that depend on the inputs: target modules, prompt and length."""
    options = inputs.start.options(options) if inputs.start else with_targets(options, inputs.architecture)
    if inputs.data.kind.generates:
        options = replace(options, prompt=inputs.data.with_prompt(options.prompt).described)
    return replace(options, max_length=options.max_length or inputs.data.max_length)


def with_targets(options: TrainOptions, architecture: Architecture) -> TrainOptions:
    """Fill in the family's target modules."""
    targets = architecture.default_targets if options.target_modules is None else options.target_modules
    return replace(options, target_modules=targets)


def lora_config(options: TrainOptions, architecture: Architecture) -> LoraConfig:
    """Make PEFT's configuration of the adapter."""
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules or ()),
        task_type=architecture.family.kind.peft,
    )


def adapter_ranks(options: TrainOptions, architecture: Architecture) -> dict[str, int]:
    """Return the rank of each layer with an adapter, by module path; PEFT trains a classifier's head whole instead."""
    config = lora_config(options, architecture)
    config.modules_to_save = list(architecture.family.head_modules) if architecture.family.kind.new_head else None
    return AdapterConfig(Path("--target-modules"), config).ranks(architecture)


def check(inputs: Inputs, options: TrainOptions) -> None:
    """Check that the training can run, before the model is loaded."""
    architecture = inputs.architecture
    if not inputs.teacher:
        _check_labels(inputs.data, inputs.eval_data)
    if inputs.eval_data:
        check_conversations(inputs.eval_data, inputs.eval_data.files[0].path, options.prompt)
    if PAIR in inputs.data.kinds and not inputs.teacher and 1 in (options.batch_size, options.micro_batch_size):
        raise LonasEdgeError(
            "A pair is learned by comparing it with the other pairs of a micro-batch; expected at least 2. Raise --batch-size "
            "or --micro-batch-size."
        )
    if not inputs.data.kind.generates:
        _check_context(inputs, options)
    _refuse_own_teacher(inputs, options)
    may_lack_head = inputs.data.labelled or (inputs.start and inputs.start.config)  # a teacher alone trains no new head
    base = open_base(inputs.base.folder, architecture, architecture.head if may_lack_head else {})
    if inputs.start and inputs.start.config:
        load_adapter(inputs.start.located.folder, inputs.start.config, architecture, base)
    else:
        _check_targets(inputs, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    if options.weight_format and options.dropout:
        raise LonasEdgeError("--dropout cannot be combined with --weight-format: the adapter is merged before quantization.")
    if options.precision == "fp16" and device_of(options) == "cpu":
        raise LonasEdgeError("--precision fp16 needs CUDA; on a CPU use bf16 or fp32")


def check_conversations(eval_data: Task, path: Path, prompt: str | None) -> None:
    """Refuse held-out conversations for a training with another prompt than the chat template; `path` is for the error."""
    if prompt != CHAT and MESSAGES in eval_data.kinds:
        raise LonasEdgeError(
            f"{path}: --eval-data holds conversations, which need --prompt {CHAT}; the training has "
            f"--prompt {prompt}. Pass --prompt {CHAT}, or --eval-data of the kind of --data."
        )


def _check_labels(data: Task, eval_data: Task | None) -> None:
    """Refuse texts without labels, and for an embedding model several kinds of records."""
    kinds = dict.fromkeys([*data.kinds, *(eval_data.kinds if eval_data else ())])
    if data.labelled and (data.kind is not EMBEDDING or len(kinds) == 1):
        return
    found, file = " and ".join(f"{kind}s" for kind in kinds), data.files[0].path
    if data.labelled:
        raise LonasEdgeError(
            f"{file}: {found} cannot be learned together; use one kind in a training, or pass --teacher MODEL."
        )
    learned = {
        EMBEDDING: "Without a teacher, an embedding model learns pairs, triplets or scored pairs.",
        CLASSIFICATION: f"Without a teacher, a classifier learns a GLUE task (TSV). {EMBEDS}",
    }
    raise LonasEdgeError(
        f"{file}: {found} without labels need --teacher MODEL, such as the unpruned model. {learned[data.kind]}"
    )


def _check_context(inputs: Inputs, options: TrainOptions) -> None:
    """Refuse texts longer than the context of the model or its teacher: there are no embeddings of later positions."""
    contexts = {inputs.base.name: inputs.architecture.context}
    if inputs.teacher:
        contexts[inputs.teacher.name] = context_of(inputs.teacher.config)
    problems = [
        f"{name} has a context of {size} tokens" for name, size in contexts.items() if size and (options.max_length or 0) > size
    ]
    raise_all(f"--max-length {options.max_length}:", problems)


def _refuse_own_teacher(inputs: Inputs, options: TrainOptions) -> None:
    """Refuse to distill a network from itself: it gives the same logits, so the loss is 0."""
    start, teacher = inputs.start, inputs.teacher
    if not start or not teacher or teacher.folder.resolve() != start.located.folder.resolve():
        return
    if vocabulary_of(inputs.base.folder) and teacher.base.resolve() != inputs.base.folder.resolve():
        return  # the adapter on a base that was trimmed further
    source = start.source
    taught = source.own or source.subnetwork(source.elasticity.maximal, "maximal")  # as the teacher is opened
    same = start.subnetwork.canonical == taught.canonical
    if not start.config:  # a new adapter changes nothing at first, whatever its ranks
        same = start.subnetwork.shapes() == taught.shapes()
    if same and not options.weight_format:
        raise LonasEdgeError(
            f"{start.located.folder}: --teacher and --from are the same network, so the loss is 0 from the start. Pass another "
            "--teacher, another --subnet, or a --weight-format to train for."
        )


def _check_targets(inputs: Inputs, options: TrainOptions) -> None:
    architecture = inputs.architecture
    problems = [
        f"target module {target!r}: the model has no such linear layer"
        for target in options.target_modules or ()
        if not any(name == target or name.endswith(f".{target}") for name in architecture.linears)
    ]
    leaves = sorted({name.rpartition(".")[2] for name in architecture.linears})
    raise_all(f"{inputs.base.name}: --target-modules do not fit the model:", problems, f"It has {', '.join(leaves)}.")
    raise_all(
        f"{inputs.nncf_config}: the search space does not fit --rank and --target-modules:",
        rank_errors(inputs.elasticity, adapter_ranks(options, architecture)),
        "Raise --rank, add --target-modules, or write a search space with other ranks (`lonas-edge space --ranks`).",
    )


def device_of(options: TrainOptions) -> str:
    """Decide the training device: cuda or cpu."""
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def precision_of(options: TrainOptions) -> str:
    """Decide the compute precision; `auto` on a CPU compares two matrix products (0.1 s)."""
    if options.precision != "auto":
        return options.precision
    if device_of(options) == "cpu":
        return faster_dtype()
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def base_dtype(inputs: Inputs, options: TrainOptions) -> str:
    """Decide the dtype of the base: the precision, but fp32 where rounding would change what QAT stores.

    QAT of an encoder is in fp32, as a classifier's head is: the costs of rounding are measured without autocast.
    """
    precision = precision_of(options)
    lossless = dtype_of(inputs.architecture.config.dtype).name == precision and inputs.data.kind.generates
    return precision if lossless or not options.weight_format else "fp32"


def default_lr(inputs: Inputs) -> float:
    """Return the default of `--lr`: 1e-3 was better than 3e-4 for SmolLM2-135M; larger models and classifiers as published."""
    weights = sum(linear.in_features * linear.out_features for linear in inputs.architecture.linears.values())
    return 3e-4 if inputs.data.kind is CLASSIFICATION or weights >= _LARGE else 1e-3
