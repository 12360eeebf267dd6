"""The order of a super-network's channels. A width keeps the first channels, so the important ones come first.

Permuting the channels between two layers (rows of the producers and columns of the consumer, of base and adapter) leaves the
whole network's function as it is and changes what a slice keeps. Importance is activation-aware, as in Wanda (Sun et al., ICLR
2024): the RMS of a channel over calibration prompts times the norm of its column in the consumer.

Files keep the base's own order. A super-adapter directory records its order in `channel_order.safetensors`, the search space of
a model without elastic training in its own section; loading applies it to base and adapter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lonas_edge.errors import raise_all
from lonas_edge.files import json_sha256
from lonas_edge.network.adapters import LoraFactors, plain_name
from lonas_edge.network.checkpoints import load_tensors
from lonas_edge.network.modeling import Inputs, body_inputs
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity
from lonas_edge.space.search_space import SearchSpace

FILE = "channel_order.safetensors"


@dataclass(frozen=True)
class ChannelOrder:
    """A permutation of the input channels of some layers; the base's own order without any.

    Attributes:
        columns: By the consumer's module path, int64 [in_features]: index i of the new order holds that channel of the base.
        producers: By the consumer's module path, the layers that produce its input.
        blocks: By the producer's module path, the sizes of the parts of its output; one part if missing. Each has its own
            number of channels per unit: keys and values fewer, fused heads more.
        units: By the consumer's module path, the number of channels that stay together: those of heads that share keys and
            values.
    """

    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    producers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, architecture: Architecture, columns: Mapping[str, torch.Tensor]) -> "ChannelOrder":
        """The order of a model's channels, by consumer."""
        producers = {name: architecture.producers[name] for name in columns}
        linears = [architecture.linears[name] for names in producers.values() for name in names]
        blocks = {linear.name: linear.blocks or (linear.out_features,) for linear in linears}
        return cls(columns, producers, blocks, {name: architecture.units[name] for name in columns})

    @cached_property
    def rows(self) -> dict[str, torch.Tensor]:
        """The permutation of a producer's output channels, by module path."""
        return {
            producer: _permute_rows(order, self.units.get(name, 1), self.blocks.get(producer, (len(order),)))
            for name, order in self.columns.items()
            for producer in self.producers[name]
        }

    def __bool__(self) -> bool:
        """Whether anything is permuted."""
        return bool(self.columns)

    def inverse(self) -> "ChannelOrder":
        """The order that undoes this one."""
        return replace(self, columns={name: torch.argsort(order) for name, order in self.columns.items()})

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Permute the channels of a tensor of a base, a PEFT model or an adapter file, if the order concerns it."""
        rows, columns = self._axes(name)
        if rows is not None:
            tensor = tensor.index_select(0, rows.to(tensor.device))
        if columns is not None and tensor.dim() == 2:
            tensor = tensor.index_select(1, columns.to(tensor.device))
        return tensor

    def _axes(self, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        module = plain_name(name).rpartition(".")[0]
        owner, _, factor = module.partition(".lora_")
        rows = None if factor == "A" else self.rows.get(owner)
        columns = None if factor == "B" else self.columns.get(owner)
        return rows, columns

    def touches(self, name: str) -> bool:
        """Whether a base parameter's channels are permuted."""
        return any(axis is not None for axis in self._axes(name))

    def apply_to_factors(self, module: str, lora: LoraFactors) -> LoraFactors:
        """Permute the factors of a layer's adapter, which are in the base's order."""
        bias = None if lora.bias is None else self.apply(f"{module}.lora_B.bias", lora.bias)
        a, b = self.apply(f"{module}.lora_A.weight", lora.a), self.apply(f"{module}.lora_B.weight", lora.b)
        return replace(lora, a=a, b=b, bias=bias)

    def apply_to_model(self, model: torch.nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Permute a live base or PEFT model's parameters in place; only those with a `wanted` name."""
        for name, parameter in model.named_parameters():
            if wanted(name) and self.touches(name):
                parameter.data = self.apply(name, parameter.data)

    @property
    def sha256(self) -> str:
        """The hash of the permutations."""
        return json_sha256({name: order.tolist() for name, order in self.columns.items()})

    def save(self, folder: Path) -> None:
        """Write `channel_order.safetensors` into a directory."""
        partial = folder / f"{FILE}.incomplete"
        save_file({name: order.contiguous().cpu() for name, order in self.columns.items()}, partial)
        partial.replace(folder / FILE)


def _permute_rows(order: torch.Tensor, unit: int, blocks: Sequence[int]) -> torch.Tensor:
    """The same order for a producer's output channels, which has its own number of channels per unit in each part."""
    units = order[::unit] // unit
    rows, start = [], 0
    for size in blocks:
        own = size * unit // len(order)
        rows.append(start + (units[:, None] * own + torch.arange(own)).flatten())
        start += size
    return torch.cat(rows)


def read_channel_order(folder: Path, architecture: Architecture) -> ChannelOrder:
    """Read a super-adapter's channel order; the base's own order without a file."""
    path = folder / FILE
    return _checked(load_tensors(path), architecture, path) if path.exists() else ChannelOrder()


def order_of_space(space: SearchSpace, architecture: Architecture, path: Path | None) -> ChannelOrder:
    """The channel order of a search space; the base's own order without one."""
    return _checked({name: torch.tensor(channels) for name, channels in space.order.items()}, architecture, path)


def _checked(columns: Mapping[str, torch.Tensor], architecture: Architecture, path: Path | None) -> ChannelOrder:
    producers = architecture.producers
    errors = []
    for name, order in columns.items():
        if name not in producers:
            errors.append(f"{name}: the model has no such layer whose input channels can be reordered")
            continue
        size = architecture.linears[name].in_features
        if order.dtype != torch.int64 or not torch.equal(order.sort().values, torch.arange(size)):
            errors.append(f"{name}: not a permutation of its {size} input channels; found {order.dtype} {list(order.shape)}")
        elif not _keeps_units(order, architecture.units[name]):
            errors.append(f"{name}: splits units of {architecture.units[name]} channels (heads that share keys and values)")
    hint = "Copy the super-adapter again, whole, or write the search space again."
    raise_all(f"{path}: the channel order does not fit the model:", errors, hint)
    return ChannelOrder.of(architecture, columns)


def _keeps_units(order: torch.Tensor, unit: int) -> bool:
    units = order.view(-1, unit)
    return bool((units[:, :1] % unit == 0).all()) and torch.equal(units, units[:, :1] + torch.arange(unit))


def by_importance(model: Any, elasticity: Elasticity, batches: Iterable[Inputs]) -> ChannelOrder:
    """Order channels by activation-aware importance: RMS of the consumer's input times the norm of its column.

    Units of several channels are ordered by the root of their summed squares; equal ones keep their order. The
    model has its own channel order; padding in the batches does not count.
    """
    consumers = [name for name in elasticity.architecture.producers if name in elasticity.in_group]
    columns, damaged = {}, []
    for name, squares in sum_squares(model, consumers, batches).items():
        importance = squares.sqrt() * model.get_submodule(name).weight.detach().double().norm(dim=0)
        columns[name] = _sort(importance, elasticity.architecture.units[name]).cpu()
        damaged += [] if importance.isfinite().all() else [f"{name}: its input or weight holds NaN or Inf"]
    raise_all("The channels cannot be ordered:", damaged, "Is the base checkpoint damaged? In fp16, try bf16 or fp32.")
    return ChannelOrder.of(elasticity.architecture, columns)


def sum_squares(model: Any, layers: Iterable[str], batches: Iterable[Inputs]) -> dict[str, torch.Tensor]:
    """Sum the squares of each channel of layers' inputs, without padding, by module path: float64 [in]; no input is stored."""
    sums: dict[str, torch.Tensor] = {}
    mask = torch.ones(0, dtype=torch.bool)

    def hook(name: str) -> Any:
        def add(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            exact = inputs[0].detach()[mask].to(torch.promote_types(inputs[0].dtype, torch.float32))
            sums[name] = sums.get(name, torch.zeros(())) + exact.square().sum(0, dtype=torch.float64)

        return add

    training = model.training
    model.eval()
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = batch["attention_mask"].bool()
                model.base_model(**body_inputs(batch), use_cache=False)  # without the head, which is not needed
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return sums


def _sort(importance: torch.Tensor, unit: int) -> torch.Tensor:
    units = importance.view(-1, unit).square().sum(1).argsort(descending=True, stable=True)
    return (units[:, None] * unit + torch.arange(unit, device=units.device)).flatten()
