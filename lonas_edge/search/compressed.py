"""The quality of a network as an IR stores it: the live super-network, each weight as it is after compression.

A linear layer merges and quantizes the active part of its weight when it is asked, and forgets it again, which takes a layer's
memory. The arithmetic is NNCF's own, data-free; that of its asymmetric formats once more in PyTorch, in half of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from lonas_edge.formats import FORMATS, WHOLE_ROWS, WeightFormat
from lonas_edge.network.calibration import given
from lonas_edge.network.parts import take
from lonas_edge.network.super_network import HEAD_POSITIONS
from lonas_edge.space.elasticity import Widths

if TYPE_CHECKING:
    from lonas_edge.network.super_network import Batch, SuperNetwork

_ASYMMETRIC = ("INT8_ASYM", "INT4_ASYM")


class StoredNetwork:
    """A super-network whose sub-networks answer as their IRs of one weight format do."""

    def __init__(self, network: "SuperNetwork", weight_format: str):
        """Compress what all sub-networks share: embeddings and head.

        Args:
            network: The super-network.
            weight_format: One of `FORMATS`.
        """
        self._network, self._format = network, FORMATS[weight_format]
        family, base = network.family, network.base
        outer = self._format.chosen(outer=True, group_size=None)
        tables = [_plain(base.get_submodule(name)) for name in family.embeddings(network.elasticity.architecture.config)]
        self._head = base.get_submodule(family.head)
        with torch.no_grad():  # inference tensors could not stand in a parameter's place
            whole = Widths.first(*_plain(self._head).weight.shape)
            self._tables = [(table, stored(table.weight, outer, None).to(table.weight.dtype)) for table in tables]
            self._stored_head = stored(merged(self._head, whole), outer, None)

    def score(
        self, quality: str, chosen: Sequence[int], batches: "Sequence[Batch]", reference: Sequence[torch.Tensor]
    ) -> float:
        """The quality of a sub-network.

        Args:
            quality: `kl` or `loss`.
            chosen: One width a group, in group order.
            batches: Prompts with the positions that count.
            reference: As of `SuperNetwork.reference`: the answers of the maximal network before compression.

        Returns:
            The quality, in nats.
        """
        total, positions, objective = 0.0, 0, self._network.objective
        self._network.activate(chosen)
        self._network.model.eval()
        with torch.inference_mode():
            for batch, kept in zip(batches, reference, strict=True):
                with self._compressed(chosen):
                    hidden = objective.counted(self._network.family.hidden(self._network.base, **given(batch)), batch)
                labels = objective.labels(batch["labels"])
                parts = (torch.split(each, HEAD_POSITIONS) for each in (kept, hidden, labels))
                total += sum(self._distance(quality, *part) for part in zip(*parts, strict=True))
                positions += len(hidden)
        return total / positions

    def _distance(self, quality: str, reference: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor) -> float:
        family, base = self._network.family, self._network.base
        with _replaced(self._head, self._answer):
            found = family.logits(base, hidden)
        if quality == "kl":
            return self._network.objective.divergence(family.logits(base, reference), found).item()
        return self._network.objective.loss(found, labels).item()

    def _answer(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self._stored_head.to(hidden.dtype), _plain(self._head).bias)

    @contextmanager
    def _compressed(self, chosen: Sequence[int]) -> Iterator[None]:
        elasticity, base = self._network.elasticity, self._network.base
        there = {name: one for name, one in elasticity.widths(chosen).items() if one.in_features}
        widths = {name: one for name, one in there.items() if base.get_submodule(name) is not self._head}
        layers = {name for name in widths if elasticity.architecture.split(name)[0]}
        group = self._format.group_size(widths[name].in_features for name in layers)
        inner, outer = self._format.chosen(outer=False, group_size=group), self._format.chosen(outer=True, group_size=group)
        group = group if inner.group_sizes else None
        kept = [table.weight.data for table, _ in self._tables]
        with ExitStack() as stack:
            for name, one in widths.items():
                layer = base.get_submodule(name)
                how = (inner, group) if name in layers else (outer, None)
                stack.enter_context(_replaced(layer, _forward(layer, one, *how)))
            for table, compressed in self._tables:
                table.weight.data = compressed
            try:
                yield
            finally:
                for (table, _), weight in zip(self._tables, kept, strict=True):
                    table.weight.data = weight


def _forward(layer: Any, widths: Widths, weight_format: WeightFormat, group: int | None) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        weight = stored(merged(layer, widths), weight_format, group).to(x.dtype)
        bias = _bias(layer, widths)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    return forward


def stored(matrix: torch.Tensor, weight_format: WeightFormat, group: int | None) -> torch.Tensor:
    """A matrix as it is after compression and back, in fp32.

    Args:
        matrix: [out, in].
        weight_format: How it is stored.
        group: Columns that share a scale; whole rows when None or `WHOLE_ROWS`.

    Returns:
        The same shape.
    """
    matrix = matrix.float()
    if weight_format.mode is None:
        return matrix.half().float() if weight_format.bits == 16 else matrix
    group = None if group == WHOLE_ROWS else group
    if weight_format.mode not in _ASYMMETRIC:
        return _stored_by_nncf(matrix, weight_format.mode, group)
    parts = matrix.reshape(len(matrix), -1, group or matrix.shape[1])
    low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True).clamp(min=0)
    most = 2**weight_format.bits - 1
    scale = ((high - low) / most).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-(low / scale).round()).clamp(0, most)
    codes = (parts / scale).add_(zero).round_().clamp_(0, most)
    restored: torch.Tensor = codes.sub_(zero).mul_(scale.half().float())  # scales are stored in fp16
    return restored.reshape(matrix.shape)


def _stored_by_nncf(matrix: torch.Tensor, mode: str, group: int | None) -> torch.Tensor:
    from nncf import CompressWeightsMode
    from nncf.quantization.algorithms.weight_compression import weight_lowering
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.tensor import Tensor, TensorDataType

    config = WeightCompressionConfig(CompressWeightsMode[mode], group or WHOLE_ROWS)
    if config.is_integer:
        codes = weight_lowering.do_integer_quantization(Tensor(matrix), config, (1,))
        restore = weight_lowering.do_integer_dequantization
    else:  # in numpy: of these NNCF 3.4 knows some there alone
        codes = weight_lowering.do_float_quantization(Tensor(matrix.numpy()), config, (1,))
        restore = weight_lowering.do_float_dequantization
    codes.scale = codes.scale.astype(TensorDataType.float16).astype(TensorDataType.float32)  # as scales are stored
    return torch.as_tensor(restore(codes).data).reshape(matrix.shape)


def merged(layer: Any, widths: Widths) -> torch.Tensor:
    """The active part of a live layer's weight with its adapter, in fp32.

    Args:
        layer: `nn.Linear`, or PEFT's LoRA layer.
        widths: The active part.

    Returns:
        [active rows, active columns].
    """
    base = _plain(layer)
    weight: torch.Tensor = take(base.weight, widths.rows, widths.columns).float()
    for name in _adapters(layer):
        up = take(layer.lora_B[name].weight, widths.rows)[:, : widths.rank]
        down = take(layer.lora_A[name].weight[: widths.rank], None, widths.columns)
        weight = torch.addmm(weight, up.float(), down.float(), alpha=float(layer.scaling[name]))
    return weight


def _bias(layer: Any, widths: Widths) -> torch.Tensor | None:
    bias: torch.Tensor | None = _plain(layer).bias
    total = None if bias is None else take(bias, widths.rows).float()
    for name in _adapters(layer):
        more = layer.lora_B[name].bias
        if more is not None and total is not None:
            total = total + float(layer.scaling[name]) * take(more, widths.rows).float()
    return total


def _adapters(layer: Any) -> list[str]:
    return [name for name in getattr(layer, "active_adapters", ()) if name in getattr(layer, "lora_A", ())]


def _plain(layer: Any) -> Any:
    """The layer that holds the weight: PEFT wraps it for an adapter, or for training it whole."""
    saved = getattr(layer, "modules_to_save", None)
    if saved is not None:
        return saved[layer.active_adapters[0]]
    return getattr(layer, "base_layer", layer)


@contextmanager
def _replaced(layer: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
