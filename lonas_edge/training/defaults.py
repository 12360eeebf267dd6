"""Options that a training leaves open, decided by its inputs and this machine, and checks before its model is loaded."""

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig

from lonas_edge.data.pooling import EMBEDS
from lonas_edge.data.task import Task
from lonas_edge.data.texts import PAIR
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, EMBEDDING
from lonas_edge.formats import dtype_of
from lonas_edge.network.adapters import AdapterConfig, load_adapter, rank_errors
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.space.architecture import Architecture
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import AUTO, TrainOptions

_LARGE, _MEDIUM = 1e9, 3e8  # weights of linear layers


def with_defaults(inputs: Inputs, options: TrainOptions) -> TrainOptions:
    """Fill in the options that depend on the inputs: target modules, prompt and length."""
    if inputs.subnetwork:
        options = _options_of_adapter(inputs, options)
    elif options.target_modules is None:
        options = replace(options, target_modules=inputs.source.architecture.default_targets)
    if inputs.data.kind.generates:
        options = replace(options, template=inputs.data.with_prompt(options.template).description)
    return replace(options, max_length=options.max_length or inputs.data.max_length)


def _options_of_adapter(inputs: Inputs, options: TrainOptions) -> TrainOptions:
    """Take rank, alpha and target modules from the adapter; a new one is on all linear layers. Channels are not sorted."""
    architecture, config = inputs.source.architecture, inputs.source.adapter_config
    if config is None:
        leaves = {name.rpartition(".")[2] for name in architecture.linears if architecture.split(name)[0]}
        return replace(options, target_modules=tuple(sorted(leaves)), reorder=False)
    lora = config.lora
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else sorted(lora.target_modules or ())
    return replace(options, rank=lora.r, alpha=float(lora.lora_alpha), target_modules=tuple(targets), reorder=False)


def lora_config(options: TrainOptions, architecture: Architecture) -> LoraConfig:
    """Make PEFT's configuration of the adapter."""
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.target_modules or architecture.default_targets),
        task_type=architecture.family.kind.peft,
    )


def adapter_ranks(options: TrainOptions, architecture: Architecture) -> dict[str, int]:
    """Return the rank of each layer with an adapter, by module path; PEFT trains a classifier's head whole instead."""
    config = lora_config(options, architecture)
    config.modules_to_save = list(architecture.family.head_modules) if architecture.family.kind.new_head else None
    return AdapterConfig(Path("the new adapter"), config).ranks(architecture)


def default_lr(inputs: Inputs) -> float:
    """Return the default of `--lr`: 1e-3 was better than 3e-4 for SmolLM2-135M; larger models and classifiers as published.

    A trained adapter that learns from a teacher forgets at a high rate what it knows (docs/benchmarks/recovery.md).
    """
    weights = sum(linear.weights for linear in inputs.source.architecture.linears.values())
    if inputs.teacher and inputs.source.adapter and inputs.data.kind.generates:
        return 1e-4 if weights >= _MEDIUM else 3e-4
    return 3e-4 if inputs.data.kind is CLASSIFICATION or weights >= _LARGE else 1e-3


def device_of(options: TrainOptions) -> str:
    """Decide the training device: cuda or cpu."""
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def precision_of(options: TrainOptions) -> str:
    """Decide the compute precision; `auto` on a CPU compares two matrix products (0.1 s)."""
    if options.dtype != "auto":
        return options.dtype
    if device_of(options) == "cpu":
        return faster_dtype()
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def base_dtype(inputs: Inputs, options: TrainOptions) -> str:
    """Decide the dtype of the base: the precision, but fp32 where rounding would change what QAT stores.

    QAT of an encoder is in fp32, as a classifier's head is: the costs of rounding are measured without autocast.
    """
    precision = precision_of(options)
    lossless = dtype_of(inputs.source.architecture.config.dtype).name == precision and inputs.data.kind.generates
    return precision if lossless or not options.weight_format else "fp32"


def check(inputs: Inputs, options: TrainOptions) -> None:
    """Check that the training can run, before the model is loaded."""
    architecture = inputs.source.architecture
    if not inputs.teacher:
        _check_labels(inputs.data, inputs.eval_data)
    if options.epochs == AUTO and not inputs.eval_data:
        raise LonasEdgeError("--epochs auto stops by the held-out loss; pass --eval-data FILE, or a number of epochs.")
    if options.epochs == AUTO and not inputs.subnetwork and len(inputs.source.space.stages) > 1:
        raise LonasEdgeError(f"--epochs auto: {inputs.nncf_config} has stages of its own lengths; pass a number of epochs.")
    if PAIR in inputs.data.kinds and not inputs.teacher and 1 in (options.batch_size, options.micro_batch_size):
        raise LonasEdgeError(
            "A pair is learned by comparing it with the other pairs of a micro-batch; expected at least 2. Raise --batch-size "
            "or --micro-batch-size."
        )
    if not inputs.data.kind.generates:  # there are no embeddings of later positions
        contexts = {inputs.source.base.name: architecture.context}
        if inputs.teacher:
            contexts[inputs.teacher.name] = inputs.teacher.architecture.context
        longest = options.max_length or 0
        errors = [f"{name} has a context of {size} tokens" for name, size in contexts.items() if size and longest > size]
        raise_all(f"--max-length {longest}:", errors)
    adapter = inputs.source.adapter_config
    may_lack_head = inputs.data.labelled or adapter  # a teacher alone trains no new head
    base = open_base(inputs.source.base.folder, architecture, architecture.head if may_lack_head else {})
    if adapter:
        load_adapter(adapter.path.parent, adapter, architecture, base)
    else:
        _check_ranks(inputs, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    if options.dtype == "fp16" and device_of(options) == "cpu":
        raise LonasEdgeError("--dtype fp16 needs CUDA; on a CPU use bf16 or fp32")


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
        CLASSIFICATION: f"Without a teacher, a new head learns a GLUE task (TSV) or texts with a label. {EMBEDS}",
    }
    raise LonasEdgeError(
        f"{file}: {found} without labels need --teacher MODEL, such as the unpruned model. {learned[data.kind]}"
    )


def _check_ranks(inputs: Inputs, options: TrainOptions) -> None:
    raise_all(
        f"{inputs.nncf_config}: the search space does not fit the adapter:",
        rank_errors(inputs.source.elasticity, adapter_ranks(options, inputs.source.architecture)),
        "Raise --rank, or write a search space with other ranks (`lonas-edge space --ranks`).",
    )
