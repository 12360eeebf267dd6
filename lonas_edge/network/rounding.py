"""What rounding each weight matrix costs.

The cost is the KL divergence from the network to itself with one matrix rounded, W + Δ in place of W. To second order it is
½ E[(∇ log p(y) · Δ)²] for y drawn from the network: the Fisher information in the direction Δ. A layer that computes
W x + α Δ x has this derivative with respect to α at α = 0. With one α for each example, a single backward pass gives all
costs, and no gradient of a weight is needed.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.nn import functional as F

from lonas_edge.data.task import Batch
from lonas_edge.families import HeadRule
from lonas_edge.formats import FORMATS
from lonas_edge.network.modeling import body_inputs
from lonas_edge.network.stored import LayerStorage, layer_storage, merge_layer, round_trip
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.space.architecture import Architecture


def rounding_costs(
    network: SuperNetwork, chosen: Sequence[int], batches: Sequence[Batch], weight_format: str
) -> dict[str, float]:
    """Estimate what rounding each weight matrix of the layers costs.

    Args:
        network: The network, in fp32. The sub-network is active afterwards, in eval mode.
        chosen: The sub-network's widths.
        batches: Inputs as of `data.encoding.collate_tokens`, on the network's device. Positions with a label count.
        weight_format: A name of `FORMATS`.

    Returns:
        KL in nats per position by module path, each with this matrix alone rounded; for a regression, the squared distance
        up to a factor.
    """
    layers = layer_storage(network, chosen, FORMATS[weight_format])
    sums, positions, generator = dict.fromkeys(layers, 0.0), 0, torch.Generator().manual_seed(0)
    network.activate(chosen)
    network.model.eval()
    for batch in batches:
        examples, device = len(batch["input_ids"]), batch["input_ids"].device
        factors = {name: torch.zeros(examples, device=device, requires_grad=True) for name in layers}
        with ExitStack() as stack:
            for name, how in layers.items():
                layer = network.base.get_submodule(name)
                stack.callback(layer.register_forward_hook(_disturb(layer, how, factors[name])).remove)
            hidden = network.task.select(network.family.hidden(network.base, **body_inputs(batch)), batch)
            logits = network.family.logits(network.base, hidden)
            drawn = network.task.sample(logits.detach(), generator)
            gradients = torch.autograd.grad(network.task.loss(logits, drawn), list(factors.values()))
        for name, gradient in zip(layers, gradients, strict=True):
            sums[name] += gradient.square().sum().item() / 2
        positions += len(drawn)
    return {name: total / positions for name, total in sums.items()}


def _disturb(layer: Any, how: LayerStorage, factor: torch.Tensor) -> Any:
    """A forward hook that adds the rounding error, times a factor [examples], to a layer's output."""

    def hook(_layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight = merge_layer(layer, how.widths)
            error = F.linear(inputs[0].float(), round_trip(weight, how.weight_format, how.group).sub_(weight))
        return output + (factor.view(-1, *[1] * (error.dim() - 1)) * error).to(output.dtype)

    return hook


def most_sensitive(
    costs: Mapping[str, float], sizes: Mapping[str, int], share: float, products: Sequence[Sequence[str]] = ()
) -> tuple[str, ...]:
    """Choose the matrices with the largest cost per weight that fit into a share of all weights.

    Args:
        costs: Cost of rounding by module path.
        sizes: Number of weights by module path.
        share: Largest share of the weights to choose.
        products: Matrices that are chosen together, because an IR multiplies them at once if their formats are equal.

    Returns:
        Module paths in the order of `sizes`.
    """
    together = [[name for name in product if name in sizes] for product in products]
    known = {name for product in together for name in product}
    units = [*filter(None, together), *([name] for name in sizes if name not in known)]
    size = {tuple(unit): sum(sizes[name] for name in unit) for unit in units}
    left, chosen = share * sum(sizes.values()), set()
    for unit in sorted(size, key=lambda unit: -sum(costs[name] for name in unit) / size[unit]):
        if size[unit] <= left:
            left -= size[unit]
            chosen |= {*unit}
    return tuple(name for name in sizes if name in chosen)


def attention_inputs(architecture: Architecture) -> list[tuple[str, ...]]:
    """Return the projections of queries, keys and values of each layer, which an IR multiplies at once; module paths."""
    producers = [rule.producers for rule in architecture.family.width_rules if isinstance(rule, HeadRule)]
    layers = dict.fromkeys(layer for layer, _ in map(architecture.split, architecture.linears) if layer)
    return [tuple(f"{layer}.{name}" for name in names) for layer in layers for names in producers]
