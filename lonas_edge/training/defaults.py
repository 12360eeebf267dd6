"""What the options of a training leave open, decided by its inputs and by this machine."""

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig

from lonas_edge.families import CLASSIFICATION
from lonas_edge.formats import dtype_of
from lonas_edge.network.adapters import AdapterConfig
from lonas_edge.network.modeling import faster_dtype
from lonas_edge.space.architecture import Architecture
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import TrainOptions

_LARGE = 1e9  # weights of linear layers


def with_defaults(inputs: Inputs, options: TrainOptions) -> TrainOptions:
    """Fill in the options that depend on the inputs: target modules, prompt and length."""
    options = _options_of_adapter(inputs, options) if inputs.subnetwork else with_targets(options, inputs.architecture)
    if inputs.data.kind.generates:
        options = replace(options, prompt=inputs.data.with_prompt(options.prompt).description)
    return replace(options, max_length=options.max_length or inputs.data.max_length)


def _options_of_adapter(inputs: Inputs, options: TrainOptions) -> TrainOptions:
    """Take rank, alpha and target modules from the adapter; a new one is on all linear layers. Channels are not sorted."""
    architecture, config = inputs.architecture, inputs.source.adapter_config
    if config is None:
        leaves = {name.rpartition(".")[2] for name in architecture.linears if architecture.split(name)[0]}
        return replace(options, target_modules=tuple(sorted(leaves)), reorder=False)
    lora = config.lora
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else sorted(lora.target_modules or ())
    return replace(options, rank=lora.r, alpha=float(lora.lora_alpha), target_modules=tuple(targets), reorder=False)


def with_targets(options: TrainOptions, architecture: Architecture) -> TrainOptions:
    """Fill in the family's target modules."""
    targets = architecture.default_targets if options.target_modules is None else options.target_modules
    return replace(options, target_modules=targets)


def lora_config(options: TrainOptions, architecture: Architecture) -> LoraConfig:
    """Make PEFT's configuration of the adapter."""
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=list(options.target_modules or ()),
        task_type=architecture.family.kind.peft,
    )


def adapter_ranks(options: TrainOptions, architecture: Architecture) -> dict[str, int]:
    """Return the rank of each layer with an adapter, by module path; PEFT trains a classifier's head whole instead."""
    config = lora_config(options, architecture)
    config.modules_to_save = list(architecture.family.head_modules) if architecture.family.kind.new_head else None
    return AdapterConfig(Path("--target-modules"), config).ranks(architecture)


def default_lr(inputs: Inputs) -> float:
    """Return the default of `--lr`: 1e-3 was better than 3e-4 for SmolLM2-135M; larger models and classifiers as published."""
    weights = sum(linear.weights for linear in inputs.architecture.linears.values())
    return 3e-4 if inputs.data.kind is CLASSIFICATION or weights >= _LARGE else 1e-3


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
