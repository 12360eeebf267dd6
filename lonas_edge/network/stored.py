"""The live super-network with the weights that an IR would store, for search and for quantization-aware training.

A linear layer merges and compresses the active part of its weight when it runs, and drops it again, which takes the memory of
one layer. The arithmetic is NNCF's, data-free, in PyTorch.

For training, rounding is the identity (the straight-through estimator, Bengio, Léonard & Courville, 2013), with weight and
adapter inside it: low-rank quantization-aware training (LR-QAT, Bondarenko, Del Chiaro & Nagel, 2024).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from lonas_edge.families import LinearPart
from lonas_edge.formats import FORMATS, PER_CHANNEL, WeightFormat
from lonas_edge.network.checkpoints import take
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.space.subnetwork import Subnetwork


@dataclass(frozen=True)
class LayerStorage:
    """The active part of a linear layer, and how it is stored; `group` columns share a scale, None: whole rows."""

    widths: LinearPart
    weight_format: WeightFormat
    group: int | None


def layer_storage(
    network: SuperNetwork, chosen: Sequence[int], weight_format: WeightFormat, kept: Collection[str] = ()
) -> dict[str, LayerStorage]:
    """Storage of a sub-network's decoder layers by module path; `kept` are layers in the format of the embedding."""
    architecture = network.elasticity.architecture
    parts = {
        name: part
        for name, part in Subnetwork(network.elasticity, tuple(chosen)).linears.items()
        if part.in_features and architecture.split(name)[0] and architecture.linears[name].used
    }
    large = {*kept, *(name for name in parts if f"{name}.weight" in architecture.eight_bits)}
    group = weight_format.group_size(
        part.in_features for name, part in parts.items() if f"{name}.weight" not in architecture.eight_bits
    )
    storage = {}
    for name, part in parts.items():
        own = weight_format.chosen(name in large, group)
        storage[name] = LayerStorage(part, own, group if own.group_sizes else None)
    return storage


class StoredWeights:
    """The weights of a super-network's sub-networks as IRs store them in a weight format."""

    def __init__(self, network: SuperNetwork, weight_format: str, kept: Collection[str] = ()):
        """Compress the embeddings and the head, which all sub-networks share; `kept`: see `layer_storage`."""
        self._network, self._format, self._kept = network, FORMATS[weight_format], kept
        family, base = network.family, network.base
        tables = [_weight_layer(base.get_submodule(name)) for name in family.embeddings(network.elasticity.architecture.config)]
        self._head = _StoredHead(base.get_submodule(family.head), self._format) if family.head else None
        outer = self._format.chosen(outer=True, group_size=None), None
        with torch.no_grad():  # inference tensors could not stand in a parameter's place
            self._tables = [
                (table, round_trip(table.weight, *(self._format_of_head(table) or outer)).to(table.weight.dtype))
                for table in tables
            ]

    def _format_of_head(self, table: Any) -> tuple[WeightFormat, int | None] | None:
        """The head's format if a table is stored as the head's weight; else None."""
        return self._head.storage if self._head and table.weight is self._head.shared else None

    @contextmanager
    def active(self, chosen: Sequence[int]) -> Iterator[None]:
        """Let the network compute with stored weights inside the block; `chosen` is the active sub-network."""
        base = self._network.base
        layers = layer_storage(self._network, chosen, self._format, self._kept)
        outer = self._format.chosen(outer=True, group_size=None)
        with ExitStack() as stack:
            for name, part in Subnetwork(self._network.elasticity, tuple(chosen)).linears.items():
                layer = base.get_submodule(name)
                if not part.in_features or (self._head and layer is self._head.layer):
                    continue
                how = layers.get(name) or LayerStorage(part, outer, None)
                stack.enter_context(_replace_forward(layer, _make_forward(layer, part, how.weight_format, how.group)))
            stack.enter_context(self.active_head())
            for table, compressed in self._tables:
                stack.enter_context(_replace_forward(table, _make_lookup(table, compressed)))
            yield

    @contextmanager
    def active_head(self) -> Iterator[None]:
        """Let the head alone compute with stored weights inside the block."""
        with _replace_forward(self._head.layer, self._head.logits) if self._head else nullcontext():
            yield


class _StoredHead:
    """A live head and its stored weight."""

    def __init__(self, layer: Any, weight_format: WeightFormat):
        """Compress the head; one that is trained is compressed again whenever it runs."""
        self.layer, weight = layer, _weight_layer(layer).weight
        self.storage = weight_format.of_head(weight.shape[1])
        self.shared = None if _adapter_names(layer) else weight  # an adapter gives a tied head a weight of its own
        self._whole = LinearPart.first(*weight.shape)
        self._trained = any(parameter.requires_grad for parameter in layer.parameters())
        with torch.no_grad():
            self._stored = round_trip(merge_layer(layer, self._whole), *self.storage)

    def logits(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Compute the logits with the stored weight."""
        if self._trained:
            return _make_forward(self.layer, self._whole, *self.storage)(hidden)
        return F.linear(hidden, self._stored.to(hidden.dtype), _weight_layer(self.layer).bias)


def _round_through(matrix: torch.Tensor, weight_format: WeightFormat, group: int | None) -> torch.Tensor:
    """A matrix as it is stored; the gradient passes straight through."""
    rounded = round_trip(matrix.detach(), weight_format, group)
    return rounded + (matrix - matrix.detach()) if matrix.requires_grad else rounded  # what is added is 0


def _make_forward(
    layer: Any, widths: LinearPart, weight_format: WeightFormat, group: int | None
) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # what is rounded is summed in fp32, as an export does
            weight = _round_through(merge_layer(layer, widths), weight_format, group).to(x.dtype)
            bias = _bias(layer, widths)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    return forward


def _make_lookup(table: Any, compressed: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Look up a stored embedding by its own rule, such as a scale; a head with the same weight does not see it."""

    def forward(*indices: Any) -> torch.Tensor:
        kept = table.weight.data
        table.weight.data = compressed
        try:
            embedded: torch.Tensor = type(table).forward(table, *indices)
        finally:
            table.weight.data = kept
        return embedded

    return forward


def round_trip(matrix: torch.Tensor, weight_format: WeightFormat, group: int | None) -> torch.Tensor:
    """A matrix [out, in] after compression and decompression, in fp32; `group` columns share a scale, or whole rows."""
    matrix = matrix.float()
    if weight_format.mode is None:
        return matrix.half().float() if weight_format.bits == 16 else matrix
    group = None if group == PER_CHANNEL else group
    parts = matrix.reshape(len(matrix), -1, group or matrix.shape[1])
    tiny = torch.finfo(torch.float32).eps
    if not weight_format.zero_point_bits:
        low, high, most = parts.amin(-1, keepdim=True).abs(), parts.amax(-1, keepdim=True), 2 ** (weight_format.bits - 1)
        scale = torch.where(low >= high, low, -high) / most
        scale = torch.where(scale.abs() < tiny, tiny, scale)
        codes = (parts / scale).round_().clamp_(-most, most - 1)
        signed: torch.Tensor = codes.mul_(scale.half().float())  # scales are stored in fp16
        return signed.reshape(matrix.shape)
    low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    most = 2**weight_format.bits - 1
    scale = ((high - low) / most).clamp(min=tiny)
    zero = (-(low / scale).round()).clamp(0, most)
    codes = (parts / scale).add_(zero).round_().clamp_(0, most)
    restored: torch.Tensor = codes.sub_(zero).mul_(scale.half().float())  # scales are stored in fp16
    return restored.reshape(matrix.shape)


def merge_layer(layer: Any, widths: LinearPart) -> torch.Tensor:
    """The active part [rows, columns] of a live layer's weight with its adapter, in fp32."""
    base = _weight_layer(layer)
    weight: torch.Tensor = take(base.weight, widths.rows, widths.columns).float()
    for name in _adapter_names(layer):
        up = take(layer.lora_B[name].weight, widths.rows)[:, : widths.rank]
        down = take(layer.lora_A[name].weight[: widths.rank], None, widths.columns)
        weight = torch.addmm(weight, up.float(), down.float(), alpha=float(layer.scaling[name]))
    return weight


def _bias(layer: Any, widths: LinearPart) -> torch.Tensor | None:
    bias: torch.Tensor | None = _weight_layer(layer).bias
    total = None if bias is None else take(bias, widths.rows).float()
    for name in _adapter_names(layer):
        more = layer.lora_B[name].bias
        if more is not None and total is not None:
            total = total + float(layer.scaling[name]) * take(more, widths.rows).float()
    return total


def _adapter_names(layer: Any) -> list[str]:
    return [name for name in getattr(layer, "active_adapters", ()) if name in getattr(layer, "lora_A", ())]


def _weight_layer(layer: Any) -> Any:
    """The layer that holds the weight: PEFT wraps it for an adapter, or for training it whole."""
    saved = getattr(layer, "modules_to_save", None)
    if saved is not None:
        return saved[layer.active_adapters[0]]
    return getattr(layer, "base_layer", layer)


@contextmanager
def _replace_forward(layer: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
