"""GPTQ in a live network: the weights that are rounded later make up for the error of those rounded before them.

Frantar, Ashkboos, Hoefler & Alistarh, "GPTQ" (ICLR 2023). The network runs once over a batch. Each layer is rounded when its
input arrives, so its input has the errors of all layers before it. What is rounded is the merged weight, base and adapter; what
changes is the base, so that an adapter can be trained further.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import PER_CHANNEL
from lonas_edge.network.calibration import given
from lonas_edge.network.parts import add
from lonas_edge.network.stored import Grid, LayerStorage, StoredWeights, merged, plain
from lonas_edge.network.super_network import Batch, SuperNetwork

_DAMPING = 0.01  # of the mean second moment, added to all; ten times as much where that is not enough
_TRIES = 4
_BLOCK = 32  # columns after which the later ones are corrected at once


def round_base(network: SuperNetwork, chosen: Sequence[int], batch: Batch, weights: StoredWeights) -> list[str]:
    """Change the base's weights so that a sub-network's merged weights lie on the grid of their format.

    Matrices of 8 bits and removed blocks stay as they are. The sub-network is active afterwards, in eval mode.

    Args:
        network: The network.
        chosen: The sub-network's widths.
        batch: Examples as of `data.encoding.Collator`, on the network's device. Padding does not count.
        weights: How the weights are stored.

    Returns:
        Module paths of the matrices that changed.

    Raises:
        LonasEdgeError: If a layer's inputs are not finite.
    """
    base, architecture = network.base, network.elasticity.architecture
    layers: dict[str, dict[str, LayerStorage]] = {}
    for name, how in weights.layers(chosen).items():
        if how.weight_format.bits < 8:
            layers.setdefault(architecture.split(name)[0], {})[name] = how
    mask, changed = batch["attention_mask"].bool().flatten(), list[str]()
    network.activate(chosen)
    network.model.eval()
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(weights.active(chosen))
        for path, own in layers.items():
            hook = _Rounding(base, own, mask, changed)
            stack.callback(base.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True).remove)
        network.family.hidden(base, **given(batch))
    return changed


class _Rounding:
    """A hook that rounds a decoder layer's matrices in front of its forward pass."""

    def __init__(self, base: Any, own: Mapping[str, LayerStorage], mask: torch.Tensor, changed: list[str]):
        self._layers = {name: base.get_submodule(name) for name in own}
        self._own, self._mask, self._changed = own, mask, changed

    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._inputs() as inputs:
            layer.forward(*args, **kwargs)
        known: dict[int, torch.Tensor] = {}  # matrices with the same input, such as q, k and v
        for name, x in inputs.items():
            if id(x) not in known:
                known[id(x)] = _factor(name, x.reshape(-1, x.shape[-1])[self._mask].float())
            how, live = self._own[name], self._layers[name]
            weight = merged(live, how.widths)
            group = weight.shape[1] if how.group in (None, PER_CHANNEL) else how.group
            change = _rounded(weight, known[id(x)], how, group) - weight
            add(plain(live).weight.data, how.widths.rows, how.widths.columns, change)
            self._changed.append(name)

    @contextmanager
    def _inputs(self) -> Iterator[dict[str, torch.Tensor]]:
        """Collect the inputs of the matrices that a forward pass inside the block uses."""
        inputs: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Any:
            return lambda _module, given: inputs.__setitem__(name, given[0])

        handles = [live.register_forward_pre_hook(keep(name)) for name, live in self._layers.items()]
        try:
            yield inputs
        finally:
            for handle in handles:
                handle.remove()


def _factor(name: str, x: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the second moments of inputs x [tokens, in]."""
    moments = x.T @ x
    mean = moments.diagonal().mean()
    if not mean.isfinite():
        raise LonasEdgeError(f"{name}: its inputs are not finite, so its weights cannot be rounded. Use --precision fp32.")
    unused = moments.diagonal() == 0
    moments.diagonal()[unused] = 1
    for attempt in range(_TRIES):
        moments.diagonal().add_((mean * _DAMPING * 10**attempt).clamp(min=torch.finfo(torch.float32).tiny))
        lower, failed = torch.linalg.cholesky_ex(moments)
        if not failed:
            factor: torch.Tensor
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return factor
    return torch.eye(len(moments), device=x.device)  # rounds to the nearest value


def _rounded(weight: torch.Tensor, factor: torch.Tensor, how: LayerStorage, group: int) -> torch.Tensor:
    """Round a matrix [out, in] column by column; `factor` is that of its inputs.

    The smallest and largest weight of each group are rounded to the nearest value, so that the result has the same grid.
    """
    weight, columns = weight.clone(), weight.shape[1]
    for start in range(0, columns, group):
        end = start + group
        before = weight[:, start:end].clone()
        grid = Grid.of(before, how.weight_format)
        fixed = (before == before.amin(1, keepdim=True)) | (before == before.amax(1, keepdim=True))
        whole = grid.rounded(before)
        for first in range(start, end, _BLOCK):
            last = min(first + _BLOCK, end)
            block, errors = weight[:, first:last].clone(), torch.empty_like(weight[:, first:last])
            for column, own in enumerate(factor[first:last, first:last]):
                now = block[:, column : column + 1]
                there = slice(first - start + column, first - start + column + 1)
                rounded = torch.where(fixed[:, there], whole[:, there], grid.rounded(now))
                errors[:, column : column + 1] = error = (now - rounded) / own[column]
                block[:, column + 1 :] -= error * own[column + 1 :]
                weight[:, first + column : first + column + 1] = rounded
            weight[:, last:] -= errors @ factor[first:last, last:]
    return weight
