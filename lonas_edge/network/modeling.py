"""Live models of a configuration, with unequal widths and removed blocks: built empty, then filled or streamed.

`per_layer_config` in config.json is transformers' field for unequal layers from 5.6 on. LLaMA in 5.5 does not read it, and
`AutoModelForCausalLM` refuses such a checkpoint; so the layers are resized here.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from lonas_edge.errors import raise_all
from lonas_edge.families import Family, ModelKind
from lonas_edge.files import check_model_folder, read_by
from lonas_edge.formats import DTYPES
from lonas_edge.network.checkpoints import describe_damage, open_tensors
from lonas_edge.network.configuration import parse_config, read_config, read_generation_config
from lonas_edge.network.depth import remove_blocks
from lonas_edge.space.architecture import Architecture

Inputs = Mapping[str, torch.Tensor]
_BODY_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
_MUCH = 1.5  # times as fast
_QUICK = 512  # rows and columns; 0.5 s where bf16 is emulated (AVX2)


def empty_model(config: dict[str, Any], where: str = "config.json") -> PreTrainedModel:
    """Build a model with its parameters on the meta device and real buffers; `where` is its name in errors."""
    return _build_empty(_architecture(config, where), where)


def _architecture(config: dict[str, Any], where: str) -> Architecture:
    return Architecture.from_config(parse_config(config, where), where)


def _build_empty(architecture: Architecture, where: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model with unequal widths and without removed blocks; `dtype` is that of its buffers."""
    family = architecture.family
    model = _build(architecture, copy.deepcopy(architecture.config), Path(where), dtype)
    remove_blocks(model, architecture, architecture.removed)
    layers = tuple(f"{family.layer(int(index))}." for index in architecture.per_layer)
    for name, linear in architecture.linears.items():
        if name.startswith(layers):
            _resize(model.get_submodule(name), linear.out_features, linear.in_features)
    for path, block in architecture.blocks.items():
        if block.cached and path.startswith(layers) and (rule := family.head_rule):
            own = architecture.of_layer(path)
            family.narrow_attention(model.get_submodule(path), rule.fields(own, rule.full(own)))
    model.tie_weights()
    return model.eval()


def repair(model: PreTrainedModel, family: Family) -> None:
    """Work around errors of transformers in a live model, in place."""
    family.repair(model)
    if family.given_positions:
        model.base_model.register_forward_pre_hook(_add_positions, with_kwargs=True)


def _add_positions(_body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a body its positions, from the length of its cache on, in the form that openvino_genai replaces by its own."""
    ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
    if ids is not None and kwargs.get("position_ids") is None:
        start = cache.get_seq_length() if cache is not None else 0
        kwargs = {**kwargs, "position_ids": torch.arange(start, start + ids.shape[1], device=ids.device)[None]}
    return args, kwargs


def check_builds(architecture: Architecture, path: Path) -> None:
    """Raise if a configuration cannot be built or has no finite rotary frequencies, by building one layer without weights."""
    shallow = copy.deepcopy(architecture.config)
    with read_by("transformers", path):
        architecture.family.shorten(shallow)
    _build(architecture, shallow, path)


def _build(architecture: Architecture, config: Any, path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    family = architecture.family
    with read_by("transformers", path), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_model(family.kind).from_config(config, dtype=dtype, **family.options)
    repair(model, family)
    wrong = [f"{name}: not finite, of the rope fields" for name, buffer in model.named_buffers() if not buffer.isfinite().all()]
    raise_all(f"{path}: positions cannot be computed:", wrong, "Take the file that came with the weights.")
    return model


def auto_model(kind: ModelKind) -> Any:
    """The transformers class that loads models of a kind."""
    return getattr(transformers, kind.auto_model)


def _resize(layer: nn.Linear, out_features: int, in_features: int) -> None:
    if (layer.out_features, layer.in_features) == (out_features, in_features):
        return
    layer.out_features, layer.in_features = out_features, in_features
    layer.weight = nn.Parameter(torch.empty(out_features, in_features, device="meta"))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.empty(out_features, device="meta"))


def load_checkpoint(folder: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Open a materialized checkpoint in PyTorch, on the CPU; its layers may be unequal.

    Args:
        folder: A directory written by `lonas-edge export --stage checkpoint`, or any checkpoint of a supported family.
        dtype: The dtype to load in; the stored one when None.

    Returns:
        The model in eval mode.
    """
    folder = Path(folder)
    check_model_folder(folder)
    return load_model(_architecture(read_config(folder), str(folder)), folder, dtype)


def load_model(
    architecture: Architecture, folder: Path, dtype: torch.dtype | None = None, new_head: bool = False
) -> PreTrainedModel:
    """Load a checkpoint as `load_checkpoint`, of these shapes; with `new_head`, a head that does not fit is random.

    transformers 5.5 has one width for all layers, and reports mismatches less clearly.
    """
    model, tensors = _build_empty(architecture, str(folder), dtype or torch.float32), open_tensors(folder)
    tensors.rename(architecture.family)
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # without a tied head
    others = [name for name, shape in parameters.items() if tensors.shapes.get(name) != shape]
    new = [name for name in others if new_head and architecture.in_head(name)]
    errors = []
    for name in sorted(set(others) - set(new)):
        found = f"found {list(tensors.shapes[name])}" if name in tensors.shapes else "missing"
        errors.append(f"{name}: expected {list(parameters[name])}, {found}")
    raise_all(f"{folder}: the weights do not match config.json:", errors)
    for name, shape in parameters.items():
        if name in new:
            set_parameter(model, name, torch.empty(shape, dtype=dtype))
            continue
        stored = tensors.read(name)
        weight = stored.to(dtype or getattr(torch, tensors.dtypes[name]), copy=True)  # the file may change
        if damage := describe_damage(weight):
            errors.append(f"{name}: {damage}, in {tensors.file_of(name).name}")
        set_parameter(model, name, weight)
    raise_all(f"{folder}: the checkpoint is damaged:", errors, "Download it again. In fp16, try bf16 or fp32.")
    for module in sorted({name.rpartition(".")[0] for name in new}):
        model._init_weights(model.get_submodule(module))
    model.tie_weights()
    model.config.dtype = next(iter(model.parameters())).dtype
    if content := read_generation_config(folder):
        model.generation_config = GenerationConfig.from_dict(content)
    return model


def set_parameter(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter of a model."""
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def lazy_zeros(shape: Sequence[int]) -> torch.Tensor:
    """fp32 zeros that take no memory until they are written: numpy gets them from calloc, which maps no pages."""
    return torch.from_numpy(np.zeros(tuple(shape), np.float32))


def body_inputs(batch: Inputs) -> Inputs:
    """Select the inputs of a model's body from a batch."""
    return {name: batch[name] for name in _BODY_INPUTS if name in batch}


def matrix_speed(dtype: str, size: int) -> float:
    """Speed of a square matrix product in FLOP/s, best of three; `dtype` is a key of `DTYPES`."""
    left, right = (torch.ones(size, size, dtype=DTYPES[dtype].torch) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def faster_dtype() -> str:
    """Return bf16 where this processor multiplies it much faster than fp32, else fp32; takes 0.1 s."""
    return "bf16" if matrix_speed("bf16", _QUICK) > _MUCH * matrix_speed("fp32", _QUICK) else "fp32"
