"""What a training works on: base model, search space, data and machine, opened and checked before the model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import dtype_of
from lonas_edge.network.adapters import CONFIG, AdapterConfig, adapter_file, load_adapter, rank_misfits
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.configuration import read_generation_config
from lonas_edge.network.correction import FILE as CORRECTION
from lonas_edge.network.source import SEARCH_SPACE, Located, Source, open_source
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import SearchSpace, read_search_space
from lonas_edge.space.subnetwork import Subnetwork, is_name, select
from lonas_edge.training.plan import Solve, TrainOptions
from lonas_edge.training.subjects import Files, Subject, read_subject
from lonas_edge.training.teacher import Teacher, open_teacher

TAUGHT_SHARE = 0.5  # of the loss, where a teacher is named and no share


@dataclass(frozen=True)
class Start:
    """An adapter of which one sub-network is trained further, its widths fixed; of a plain LoRA adapter the maximal one."""

    source: Source
    subnetwork: Subnetwork

    @property
    def located(self) -> Located:
        """Where the adapter lies."""
        assert self.source.adapter  # there is no start without one
        return self.source.adapter

    @property
    def config(self) -> AdapterConfig:
        """The adapter's configuration."""
        assert self.source.adapter_config
        return self.source.adapter_config

    @property
    def files(self) -> list[Path]:
        """What the training begins from."""
        folder = self.located.folder
        others = [folder / name for name in (ORDER, CORRECTION) if (folder / name).exists()]
        return [folder / CONFIG, adapter_file(folder), *others]

    def options(self, options: TrainOptions) -> TrainOptions:
        """Options of training it: what is the super-adapter's own."""
        lora = self.config.lora
        targets = [lora.target_modules] if isinstance(lora.target_modules, str) else sorted(lora.target_modules or ())
        return replace(
            options,
            rank=lora.r,
            alpha=float(lora.lora_alpha),
            target_modules=tuple(targets),
            sampling="random",
            reorder=False,
        )


@dataclass(frozen=True)
class Inputs:
    """What a training works on.

    Attributes:
        base: The base model.
        elasticity: The search space laid over it; one without groups is plain LoRA.
        nncf_config: The search space's file, or None.
        subject: What is learned.
        start: The adapter of which one sub-network is trained further; None where an adapter is trained from the start.
        teacher: The frozen model that is learned from, if there is one.
        solve: What the sub-network is solved on first; None where it is not.
    """

    base: Located
    elasticity: Elasticity
    nncf_config: Path | None
    subject: Subject
    start: Start | None = None
    teacher: Teacher | None = None
    solve: Solve | None = None

    @property
    def architecture(self) -> Architecture:
        """The base model's shapes."""
        return self.elasticity.architecture

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.elasticity.space


def open_inputs(
    model: str,
    data: Files,
    nncf_config: Path | None = None,
    revision: str | None = None,
    elastic: bool = True,
    task: str | None = None,
) -> Inputs:
    """Read the configurations and the data of a training and check that they belong together.

    Args:
        model: The base model.
        data: The files to learn from: instructions, conversations and texts, or a TSV file of GLUE's.
        nncf_config: The search space, or None.
        revision: The base model's revision on the hub.
        elastic: Whether sub-networks are trained; a plain LoRA adapter takes nothing but the stages from the search space.
        task: The task of GLUE that a file is of; that which its folder is named by when None.

    Returns:
        The inputs, no weights read yet.

    Raises:
        LonasEdgeError: If something is missing or does not fit.
    """
    subject = read_subject(data, task)
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    space = space if elastic else replace(space, groups=())  # its stages stay, so that the baseline is trained as long
    source = open_source(None, model, revision=revision, outputs=subject.head)
    if source.adapter:
        raise LonasEdgeError(
            f"{source.adapter.folder}: holds an adapter, which training would not go on with; --model is the base model alone"
        )
    subject.check(source)
    read_generation_config(source.base.folder)  # transformers reads it with the weights
    return Inputs(source.base, bind(source.architecture, space, str(nncf_config)), nncf_config, subject)


def open_specialized(
    start: str,
    data: Files,
    subnet: str | None = None,
    model: str | None = None,
    nncf_config: Path | None = None,
    revision: str | None = None,
    task: str | None = None,
) -> Inputs:
    """Read the configurations and the data of a training of one sub-network, and check that they belong together.

    Args:
        start: The super-adapter that it begins as, or a plain LoRA adapter, which has the maximal network only.
        data: The files to learn from.
        subnet: The sub-network, as of --subnet.
        model: The base model; the one that the super-adapter names when None.
        nncf_config: The search space; that of the super-adapter when None.
        revision: The base model's revision on the hub.
        task: As of `open_inputs`.

    Returns:
        The inputs, no weights read yet.

    Raises:
        LonasEdgeError: If something is missing or does not fit.
    """
    subject = read_subject(data, task)
    source = open_source(start, model, nncf_config, revision)
    if not (source.adapter and source.adapter_config):
        raise LonasEdgeError(
            f"{source.folder}: a base model; --from takes a LoRA adapter: what `lonas-edge train` wrote, a published "
            "super-adapter with --nncf-config FILE, or a plain one, which has the maximal network only"
        )
    subject.check(source)
    _refuse_other_parameters(source.adapter_config)
    read_generation_config(source.base.folder)
    space = (nncf_config or source.adapter.folder / SEARCH_SPACE) if source.space.groups else None
    return Inputs(source.base, source.elasticity, space, subject, Start(source, source.select(subnet)))


def _refuse_other_parameters(config: AdapterConfig) -> None:
    """A sub-network's slice of what an adapter trains beside its factors is not known here."""
    found = {name: getattr(config.lora, name) for name in ("bias", "lora_bias", "modules_to_save")}
    others = [f"{name} = {value!r}" for name, value in found.items() if value not in ("none", False, None, [])]
    raise_all(
        f"{config.path}: --from trains LoRA factors alone, and this adapter has more:",
        others,
        "Export it as it is, or train anew.",
    )


def read_subnetworks(inputs: Inputs, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Read sub-networks to draw from.

    Args:
        inputs: Says the search space.
        choices: Directories of sub-network files, as a search leaves one, and what `subnetwork.select` takes: files and
            names, which win over directories that are called so.

    Returns:
        The widths of each network, each once.

    Raises:
        LonasEdgeError: If a directory has none, or a choice is no sub-network of the search space; all are listed.
    """
    found, problems = {}, []
    for choice in choices:
        folder = Path(choice)
        ones = sorted(map(str, folder.glob("*.json"))) if folder.is_dir() and not is_name(choice) else [choice]
        problems += [] if ones else [f"{choice}: holds no sub-network (*.json)"]
        for one in ones:
            try:
                found[select(inputs.elasticity, one).canonical] = one
            except LonasEdgeError as error:
                problems.append(str(error))
    if problems:
        raise LonasEdgeError("\n".join(problems))
    return tuple(found)


def with_teacher(inputs: Inputs, reference: str) -> Inputs:
    """The same training with a frozen teacher.

    Args:
        inputs: What is trained.
        reference: The teacher; see `teacher.open_teacher`.

    Returns:
        The inputs, the teacher's weights not read yet.

    Raises:
        LonasEdgeError: If it cannot teach this model.
    """
    inputs.architecture.require(CAUSAL_LM, "--teacher")
    return replace(inputs, teacher=open_teacher(reference, inputs.base))


def settled(inputs: Inputs, options: TrainOptions) -> TrainOptions:
    """The options of a training, what they leave open decided by what is trained.

    Args:
        inputs: What is trained.
        options: As asked for.

    Returns:
        The options; nothing is open but how long and in which portions.

    Raises:
        LonasEdgeError: If the data cannot be put in the template that is named.
    """
    found = inputs.start.options(options) if inputs.start else resolved(options, inputs.architecture)
    found = inputs.subject.settled(found, inputs.start.source if inputs.start else None)
    share = TAUGHT_SHARE if inputs.teacher else 0.0
    return replace(
        found,
        distill=share if found.distill is None else found.distill,
        max_length=found.max_length or inputs.subject.longest(inputs.architecture),
    )


def resolved(options: TrainOptions, architecture: Architecture) -> TrainOptions:
    """The options, with the family's target modules where none are named."""
    targets = architecture.family.default_targets if options.target_modules is None else options.target_modules
    return replace(options, target_modules=targets)


def lora_config(options: TrainOptions, architecture: Architecture) -> LoraConfig:
    """PEFT's configuration of the adapter that resolved options describe."""
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules or ()),
        task_type=architecture.family.task.peft,
    )


def adapter_ranks(options: TrainOptions, architecture: Architecture) -> dict[str, int]:
    """The adapter's rank on each layer that gets one, by module path, from resolved options."""
    return AdapterConfig(Path("--target-modules"), lora_config(options, architecture)).ranks(architecture)


def check(inputs: Inputs, options: TrainOptions) -> None:
    """Refuse, before the model is loaded, what cannot be trained.

    Args:
        inputs: Base model, search space and data.
        options: How to train, resolved.

    Raises:
        LonasEdgeError: Lists every misfit of the search space and of the target modules.
    """
    architecture = inputs.architecture
    if fault := inputs.subject.length_fault(options, architecture):
        raise LonasEdgeError(f"--max-length {options.max_length}: {inputs.base.name}: {fault}")
    open_base(inputs.base.folder, architecture, architecture.head)
    if inputs.start:
        load_adapter(inputs.start.located.folder, inputs.start.config, architecture)
    else:
        _check_targets(inputs, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError("--device cuda: PyTorch sees no CUDA device; take --device cpu")
    if options.weight_format and options.dropout:
        raise LonasEdgeError(
            f"--dropout {options.dropout:g} with --weight-format {options.weight_format}: what is stored is the weight and the "
            "adapter as one, so that there is no input of the adapter alone to drop; leave one out"
        )
    if options.precision == "fp16" and device_of(options) == "cpu":
        raise LonasEdgeError("--precision fp16 needs CUDA; on a CPU take bf16 or fp32")


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
        rank_misfits(inputs.elasticity, adapter_ranks(options, architecture)),
        "Raise --rank, add --target-modules, or write a search space with other ranks (`lonas-edge space --ranks`).",
    )


def device_of(options: TrainOptions) -> str:
    """Where it is trained: cuda or cpu."""
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def precision_of(options: TrainOptions) -> str:
    """What it is computed in: fp32, bf16 or fp16."""
    if options.precision != "auto":
        return options.precision
    if device_of(options) == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def base_dtype(inputs: Inputs, options: TrainOptions) -> str:
    """What the base is loaded in: the precision, and fp32 where rounding to it would change what is stored."""
    precision = precision_of(options)
    lossless = dtype_of(inputs.architecture.config.dtype).name == precision
    return precision if lossless or not options.weight_format else "fp32"
