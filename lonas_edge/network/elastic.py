"""Elastic layers: a sub-network switched on in a live, unpatched PEFT model.

A layer is made elastic by giving it a subclass of its own class; modules, parameters and state-dict keys stay as they were.
The forward pass computes with views of the active rows, columns and ranks, so that the inactive part costs nothing, and neither
weights nor masks are copied (those of fused layers, whose active part is several ranges, are).

Width semantics: Muñoz et al., "LoNAS" (LREC-COLING 2024), "always the first w channels, in stored order".
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import LinearPart, Ranges
from lonas_edge.network.checkpoints import take


class ElasticLinear(nn.Linear):
    """`nn.Linear` that computes with its part `active` only."""

    active: LinearPart

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [..., active columns] to [..., active rows]."""
        bias = None if self.bias is None else take(self.bias, self.active.rows)
        return F.linear(input, take(self.weight, self.active.rows, self.active.columns), bias)


class ElasticLoraLinear(LoraLinear):  # type: ignore[misc]  # peft is untyped
    """PEFT's `lora.Linear` that computes with its part `active` only; its base layer is an ElasticLinear.

    y = W[rows, columns] x + scale · B[rows, :rank] A[:rank, columns] x, with the scale of the whole adapter.
    """

    active: LinearPart
    base_layer: ElasticLinear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., active columns] to [..., active rows], in the base layer's dtype."""
        result: torch.Tensor = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_A:
                result = result + self._delta(name, x)
        return result.to(dtype)

    def _delta(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rows, columns, rank = self.active.rows, self.active.columns, self.active.rank
        down = take(self.lora_A[name].weight[:rank], None, columns)
        up = take(self.lora_B[name].weight, rows)[:, :rank]
        bias: torch.Tensor | None = self.lora_B[name].bias
        scale = float(self.scaling[name])
        if not torch.is_autocast_enabled(x.device.type):  # autocast would cast back
            x = x.to(down.dtype)
        low = F.linear(self.lora_dropout[name](x), down)
        if bias is None and math.frexp(scale)[0] == 0.5:  # a power of two: exact wherever it is multiplied, cheapest here
            return F.linear(low * scale, up)
        return F.linear(low, up, None if bias is None else take(bias, rows)) * scale

    def inactive(self, widths: LinearPart) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
        """Yield the inactive parts of the adapter under `widths`: a parameter and an index; they do not overlap."""
        rows, columns, rank = widths.rows, widths.columns, widths.rank
        for adapter in self.active_adapters:
            if adapter not in self.lora_A:
                continue
            down, up = self.lora_A[adapter].weight, self.lora_B[adapter]
            ranks = ((0, down.shape[0] if rank is None else rank),)
            yield from _inactive(down, ranks, columns)
            yield from _inactive(up.weight, rows, ranks)
            if up.bias is not None:
                yield from _inactive(up.bias, rows)


def complement(ranges: Ranges, size: int) -> Ranges:
    """The ranges of an axis of this size that a part does not have."""
    ends = [0, *(stop for _, stop in ranges)]
    starts = [*(start for start, _ in ranges), size]
    return tuple((end, start) for end, start in zip(ends, starts, strict=True) if end < start)


def _inactive(
    parameter: nn.Parameter, rows: Ranges, columns: Ranges | None = None
) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
    for start, stop in complement(rows, parameter.shape[0]):
        yield parameter, (slice(start, stop),)
    for start, stop in complement(columns, parameter.shape[1]) if columns is not None else ():
        for first, last in rows:
            yield parameter, (slice(first, last), slice(start, stop))


def make_elastic(name: str, layer: Any) -> ElasticLinear | ElasticLoraLinear:
    """Make a live layer elastic, in place; all of it is active at first."""
    if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear and not layer.merged and not layer.lora_variant:
        layer.base_layer.__class__ = ElasticLinear
        layer.__class__ = ElasticLoraLinear
    elif type(layer) is nn.Linear:
        layer.__class__ = ElasticLinear
    elif not isinstance(layer, ElasticLinear | ElasticLoraLinear):
        raise LonasEdgeError(
            f"{name}: a {type(layer).__name__} cannot be made elastic; expected nn.Linear or PEFT's unmerged plain LoRA layer"
        )
    elastic: ElasticLinear | ElasticLoraLinear = layer
    activate(elastic, LinearPart.first(layer.out_features, layer.in_features))
    return elastic


def activate(layer: ElasticLinear | ElasticLoraLinear, widths: LinearPart) -> None:
    """Set a layer's active part."""
    layer.active = widths
    if isinstance(layer, ElasticLoraLinear):
        layer.base_layer.active = widths
