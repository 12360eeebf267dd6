"""Elastic layers: a sub-network switched on in a live, unpatched PEFT model.

A layer is made elastic by giving it a subclass of its own class; modules, parameters and state-dict keys stay as they were.
`activate` then sets three integers a layer. The forward pass computes with views of the first rows, columns and ranks, so
that the inactive part costs nothing, and neither weights nor masks are copied.

Width semantics: Muñoz et al., "LoNAS" (LREC-COLING 2024), "always the first w channels, in stored order".
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import Located, Source
from lonas_edge.space.architecture import Elasticity, Widths


class ElasticLinear(nn.Linear):
    """`nn.Linear` whose first `active_out` rows and `active_in` columns are active."""

    active_out: int
    active_in: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute the active outputs.

        Args:
            input: [..., active_in].

        Returns:
            [..., active_out].
        """
        bias = None if self.bias is None else self.bias[: self.active_out]
        return F.linear(input, self.weight[: self.active_out, : self.active_in], bias)


class ElasticLoraLinear(LoraLinear):
    """PEFT's `lora.Linear` whose adapter is active in its first `active_rank` ranks; its base layer is an ElasticLinear.

    y = W[:out, :in] x + scale · B[:out, :rank] A[:rank, :in] x, with the scale of the whole adapter.
    """

    active_out: int
    active_in: int
    active_rank: int | None
    base_layer: ElasticLinear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the active outputs.

        Args:
            x: [..., active_in].

        Returns:
            [..., active_out], in the base layer's dtype.
        """
        result = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_A:
                result = result + self._delta(name, x)
        return result.to(dtype)

    def _delta(self, name: str, x: torch.Tensor) -> torch.Tensor:
        down = self.lora_A[name].weight[: self.active_rank, : self.active_in]
        up = self.lora_B[name].weight[: self.active_out, : self.active_rank]
        bias, scale = self.lora_B[name].bias, self.scaling[name]
        if not torch.is_autocast_enabled(x.device.type):  # autocast would cast back
            x = x.to(down.dtype)
        inner = F.linear(self.lora_dropout[name](x), down)
        if bias is None and math.frexp(scale)[0] == 0.5:  # a power of two: exact wherever it is multiplied, cheapest here
            return F.linear(inner * scale, up)
        return F.linear(inner, up, None if bias is None else bias[: self.active_out]) * scale


class SuperNetwork:
    """A live model with elastic layers, in which sub-networks are switched on.

    The model stays an ordinary `PeftModel` (or a plain causal language model): it saves, loads and trains as before.
    """

    def __init__(self, model: Any, elasticity: Elasticity):
        """Make the elastic layers of `model` elastic; all of each layer is active at first.

        Args:
            model: A PEFT model with unmerged LoRA adapters, or a base model.
            elasticity: The search space laid over the base model.

        Raises:
            LonasEdgeError: If an elastic layer is neither `nn.Linear` nor PEFT's plain LoRA layer, or is merged.
        """
        self.model = model
        self.elasticity = elasticity
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        elastic = {*elasticity.out_group, *elasticity.in_group, *elasticity.rank_group}
        self._layers: dict[str, ElasticLinear | ElasticLoraLinear] = {
            name: _make_elastic(name, base.get_submodule(name)) for name in sorted(elastic)
        }

    def activate(self, chosen: Sequence[int]) -> None:
        """Switch a sub-network on.

        Args:
            chosen: One width a group, in group order.
        """
        widths = self.elasticity.widths(chosen)
        for name, layer in self._layers.items():
            _set_widths(layer, widths[name])

    def inactive_parts(self, chosen: Sequence[int]) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
        """The parts of the adapters' parameters that a sub-network does not have.

        Args:
            chosen: One width a group, in group order.

        Yields:
            A parameter and the index of a part of it; parts do not overlap.
        """
        widths = self.elasticity.widths(chosen)
        for name, layer in self._layers.items():
            if not isinstance(layer, ElasticLoraLinear):
                continue
            rows, columns, rank = widths[name].out_features, widths[name].in_features, widths[name].rank
            for adapter in layer.active_adapters:
                if adapter not in layer.lora_A:
                    continue
                down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter]
                yield from _outside(down, down.shape[0] if rank is None else rank, columns)
                yield from _outside(up.weight, rows, up.weight.shape[1] if rank is None else rank)
                if up.bias is not None:
                    yield from _outside(up.bias, rows)


def _outside(
    parameter: nn.Parameter, rows: int, columns: int | None = None
) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
    if rows < parameter.shape[0]:
        yield parameter, (slice(rows, None),)
    if columns is not None and columns < parameter.shape[1]:
        yield parameter, (slice(rows), slice(columns, None))


def load_super_network(source: Source, dtype: torch.dtype = torch.float32) -> SuperNetwork:
    """Load a super-adapter on its base, channels in the super-network's order, all of it active.

    Args:
        source: Base model, adapter and search space.
        dtype: The base's dtype; the adapter stays in fp32.

    Returns:
        The super-network, on the CPU, in eval mode.

    Raises:
        LonasEdgeError: If base, adapter and search space do not fit.
    """
    model: Any = load_base(source.base, dtype)
    if source.adapter:
        model = PeftModel.from_pretrained(model, str(source.adapter.folder))
    source.order.apply_to_model(model)
    return SuperNetwork(model.eval(), source.elasticity)


def load_base(base: Located, dtype: torch.dtype) -> PreTrainedModel:
    """Load a base model from its directory, through transformers.

    Args:
        base: Where it lies.
        dtype: The dtype to load in.

    Returns:
        The model, on the CPU.
    """
    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=dtype, local_files_only=True, trust_remote_code=False)


def _make_elastic(name: str, layer: Any) -> ElasticLinear | ElasticLoraLinear:
    if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear and not layer.merged and not layer.lora_variant:
        layer.base_layer.__class__ = ElasticLinear
        layer.__class__ = ElasticLoraLinear
    elif type(layer) is nn.Linear:
        layer.__class__ = ElasticLinear
    elif not isinstance(layer, ElasticLinear | ElasticLoraLinear):
        raise LonasEdgeError(
            f"{name}: a {type(layer).__name__} cannot be made elastic; expected nn.Linear or PEFT's unmerged plain LoRA layer"
        )
    _set_widths(layer, Widths(layer.out_features, layer.in_features))
    return layer


def _set_widths(layer: ElasticLinear | ElasticLoraLinear, widths: Widths) -> None:
    layer.active_out, layer.active_in = widths.out_features, widths.in_features
    if isinstance(layer, ElasticLoraLinear):
        layer.active_rank = widths.rank
        _set_widths(layer.base_layer, widths)
