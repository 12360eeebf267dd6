"""Least-squares reconstruction: a layer whose input is cut gets the weight with the nearest output to the uncut one.

Over the tokens seen, with x the layer's input in the maximal network, K the kept columns and C the cut ones, W0 the maximal
network's merged weight and W1 the sub-network's, which lacks the factors b a of the adapter's last ranks,

    W = argmin |W0 x - W x_K|^2 + d |W - W1|^2,    so    W - W1 = (W0[:, C] H[C, K] + b a[:, K] H[K, K]) (H[K, K] + d I)^-1,

with H = sum x x^T and d = SHRINKAGE times the mean of its diagonal: least squares on calibration text, as in OBC (Frantar and
Alistarh, NeurIPS 2022) and OSSCAR (Meng et al., ICML 2024), regularized towards the trained weights. No eigenvalue of H[K, K] +
d I is more than 1 + in / SHRINKAGE times another one, so that single precision suffices after its factorization.

Layers are visited one by one: the maximal network runs on the prompts, and the three compared networks on the held-out ones.
Each correction is written to a file at once. The memory is that of one layer, its moments, and its inputs for all prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from lonas_edge.errors import raise_all
from lonas_edge.network.calibration import Moments, summed_moments
from lonas_edge.network.correction import Correction, StoredDeltas
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import stream_weights
from lonas_edge.network.super_network import Batch, empty_super_network, of_adapter, unwrapped
from lonas_edge.network.walk import Walk
from lonas_edge.space.elasticity import Widths
from lonas_edge.space.subnetwork import Subnetwork

SHRINKAGE = 0.1  # others: docs/benchmarks/reconstruction.md
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Solution:
    """Result of a least-squares reconstruction.

    Attributes:
        correction: The change of the weights.
        tokens: Number of tokens it was computed on.
        before: Mean KL from the maximal network on held-out prompts without it, in nats per position.
        after: The same with it.
    """

    correction: Correction
    tokens: int
    before: float
    after: float


def cut_consumers(subnetwork: Subnetwork) -> dict[str, Widths]:
    """The active part of each layer with a narrowed input, by module path in the order of the model."""
    elasticity, active = subnetwork.elasticity, subnetwork.linears
    whole = Subnetwork(elasticity, elasticity.maximal).linears
    consumers = (name for name in subnetwork.architecture.producers if name in elasticity.in_group)
    return {name: active[name] for name in consumers if 0 < active[name].in_features < whole[name].in_features}


def correction_bytes(subnetwork: Subnetwork) -> int:
    """Bytes of the corrections on disk."""
    return sum(4 * active.out_features * active.in_features for active in cut_consumers(subnetwork).values())


def reconstruct(
    model: MaterializedModel,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    folder: Path,
    shrinkage: float = SHRINKAGE,
    done: Progress = lambda _: None,
) -> Solution:
    """Reconstruct every layer with a narrowed input.

    Args:
        model: The materialized sub-network, without a correction.
        batches: Prompts for the least squares.
        held_out: Prompts for the evaluation.
        folder: An existing directory, which gets a file per decoder layer; the correction reads them.
        shrinkage: Regularization towards the trained weights, relative to the mean square of an input.
        done: Called with the share that is done.
    """
    network = _Network(model, shrinkage)
    maximal, own = model.source.elasticity.maximal, model.subnetwork.widths
    walk = Walk(network.network, batches)
    uncut, cut, reconstructed = (Walk(network.network, held_out) for _ in range(3))
    files: list[Path] = []
    for index in range(len(walk)):
        network.forget()
        network.activate(maximal, {})
        deltas = network.reconstruct(walk, batches, index)
        if deltas:
            files.append(folder / f"layer-{index:05}.safetensors")
            save_file(deltas, files[-1])
        if index + 1 < len(walk):
            for held, widths, correction in ((uncut, maximal, {}), (cut, own, {}), (reconstructed, own, deltas)):
                network.activate(widths, correction)
                held.step()
        done((index + 1) / len(walk))
    raise_all(
        f"{model.source.folder}: the least-squares reconstruction failed:",
        network.damaged,
        "Are base and adapter damaged, or the texts empty?",
    )
    reference = network.hidden(uncut, held_out, maximal, {})
    before, after = (
        network.kl(reference, network.hidden(held, held_out, own, correction))
        for held, correction in ((cut, {}), (reconstructed, deltas))
    )
    network.forget()
    return Solution(Correction(StoredDeltas(files)), network.tokens, before, after)


class _Network:
    """A live network with streamed weights, and the corrections so far.

    Attributes:
        network: The super-network, computed in fp32.
        tokens: Number of tokens of the last layer.
        damaged: Layers that cannot be reconstructed, with the reason.
    """

    def __init__(self, model: MaterializedModel, shrinkage: float):
        """Load the network without its weights."""
        self.network = empty_super_network(model.source)
        self.tokens = 0
        self.damaged: list[str] = []
        self._model, self._shrinkage = model, shrinkage
        self._widths = model.subnetwork.linears
        self._consumers = cut_consumers(model.subnetwork)
        self._correction = Correction()
        self._kept: dict[str, torch.Tensor] = {}
        stream_weights(self.network.base, self._fetch, lambda name: not of_adapter(name), torch.float32)

    def _fetch(self, name: str) -> torch.Tensor:
        """Read a base weight; those of the current layer are cached."""
        name = unwrapped(name)
        if name not in self._kept:
            stored = self._model.base_tensor(name)
            self._kept[name] = stored.float() if name.rpartition(".")[0] in self._widths else stored
        return self._correction.onto(name, self._kept[name], self._widths)

    def forget(self) -> None:
        """Drop the cached weights."""
        self._kept.clear()

    def activate(self, chosen: Sequence[int], deltas: Mapping[str, torch.Tensor]) -> None:
        """Activate a sub-network, with the corrections of the current layer."""
        self.network.activate(chosen)
        self._correction = Correction(deltas)

    def reconstruct(self, walk: Walk, batches: Sequence[Batch], index: int) -> dict[str, torch.Tensor]:
        """Walk through a decoder layer and reconstruct its narrowed layers: corrections by module path."""
        layer = self._model.source.architecture.family.layer(index)
        here = {name: active.columns for name, active in self._consumers.items() if name.startswith(f"{layer}.")}
        with summed_moments(self.network.base, here) as (moments, runs):
            walk.step(lambda index: runs(batches[index]))
        deltas = {}
        for name in here:
            seen = moments.pop(name)
            self.tokens = seen.tokens
            if not seen.squares.isfinite().all():
                self.damaged.append(f"{name}: its input holds NaN or Inf")
                continue
            with torch.inference_mode():  # as what was summed
                delta = _delta(self._model, name, seen, self._shrinkage)
            if delta.isfinite().all():
                deltas[name] = delta
            else:
                self.damaged.append(f"{name}: the second moments of its input are singular; pass other texts, or more")
        return deltas

    def hidden(
        self, held: Walk, batches: Sequence[Batch], chosen: Sequence[int], deltas: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """The head's input at the positions that count, from the walk's layer on: [positions, hidden] per batch."""
        self.activate(chosen, deltas)
        return [self.network.objective.counted(held.hidden(index), batch) for index, batch in enumerate(batches)]

    def kl(self, reference: Sequence[torch.Tensor], hidden: Sequence[torch.Tensor]) -> float:
        """Mean KL in nats per position."""
        with torch.inference_mode():
            total = sum(self.network.divergence(p, q).item() for p, q in zip(reference, hidden, strict=True))
        return total / sum(map(len, hidden))


def _delta(model: MaterializedModel, layer: str, seen: Moments, shrinkage: float) -> torch.Tensor:
    """The correction of one layer's weight, fp32 [active rows, active columns]; NaN where moments are singular."""
    assert seen.products is not None  # with the channels that are kept
    width = seen.products.shape[1]
    square, crossed = seen.products[:width], seen.products[width:]  # of the first, what is on and below the diagonal
    columns, b, a = model.cut_part(layer)
    shrink = shrinkage * float(seen.squares.mean())
    if len(a):
        crossed = torch.cat([crossed, a @ (square.tril() + square.tril(-1).T)])
    left, right = torch.cat([columns, b], 1).float(), crossed.float()
    square.diagonal().add_(shrink)  # nothing needs the moments any more
    factor, fault = torch.linalg.cholesky_ex(square)
    if fault:
        return torch.full((len(columns), width), torch.nan)
    if len(right) > len(left):  # the product first: fewer right-hand sides
        return torch.cholesky_solve((left @ right).T, factor.float()).T.contiguous()
    return left @ torch.cholesky_solve(right.T, factor.float()).T
