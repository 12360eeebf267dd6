"""Solving what a cut leaves: the layer that consumes what is cut gets the weight that answers nearest to the uncut one.

Over the tokens seen, with x the layer's input in the maximal network, K the columns that are kept, W0 the maximal network's
merged weight and W1 the sub-network's,

    W = argmin |W0 x - W x_K|^2 + d |W - W1|^2,    so    W - W1 = (W0 H[:, K] - W1 H[K, K]) (H[K, K] + d I)^-1,

with H = sum x x^T and d = SHRINKAGE times the mean of its diagonal: least squares on calibration text, as in OBC (Frantar and
Alistarh, NeurIPS 2022) and OSSCAR (Meng et al., ICML 2024), drawn towards what training gave. Layers are walked one by one,
their weights streamed: the memory is that of one layer, of its H, of its inputs for all prompts, and of the
changes found so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lonas_edge.errors import raise_all
from lonas_edge.network.calibration import Moments, summed_moments
from lonas_edge.network.correction import Correction
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import stream_weights
from lonas_edge.network.parts import take
from lonas_edge.network.super_network import Batch, SuperNetwork, empty_super_network, of_adapter, unwrapped
from lonas_edge.network.walk import Walk
from lonas_edge.space.subnetwork import Subnetwork

SHRINKAGE = 0.1  # docs/guide/export.md has what others gave
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Solution:
    """What solving a sub-network gave.

    Attributes:
        correction: The change of its weights.
        tokens: How many it was solved on.
        before: Mean KL from the maximal network on held-out prompts without it, in nats a position.
        after: With it.
    """

    correction: Correction
    tokens: int
    before: float
    after: float


def cut_consumers(model: MaterializedModel) -> list[str]:
    """The layers whose input a sub-network narrows, and which it has.

    Args:
        model: The materialized sub-network.

    Returns:
        Their module paths, in the model's order.
    """
    elasticity = model.source.elasticity
    whole, widths = elasticity.widths(elasticity.maximal), elasticity.widths(model.subnetwork.widths)
    consumers = (name for name in elasticity.architecture.producers if name in elasticity.in_group)
    return [name for name in consumers if 0 < widths[name].in_features < whole[name].in_features]


def solve(
    model: MaterializedModel,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    shrinkage: float = SHRINKAGE,
    done: Progress = lambda _: None,
) -> Solution:
    """Solve every layer that consumes what a sub-network cuts.

    Args:
        model: The materialized sub-network, not corrected.
        batches: The prompts to solve on.
        held_out: Prompts that tell what it gives.
        shrinkage: How strongly weights are drawn to those that they have, over the mean square of an input.
        done: Called with the share that is done.

    Returns:
        The correction, with what it gives.

    Raises:
        LonasEdgeError: If what a layer is given is not finite; all such layers are listed.
    """
    elasticity = model.source.elasticity
    corrected = model
    network = _streamed(model, lambda: corrected)
    reference = network.reference(held_out)
    [before] = network.kl([model.subnetwork.widths], held_out, reference)
    done(0.1)
    network.activate(elasticity.maximal)
    deltas, tokens = _deltas(network, model, batches, shrinkage, lambda share: done(0.1 + 0.8 * share))
    corrected = MaterializedModel(model.source, model.subnetwork, Correction(deltas))
    [after] = network.kl([model.subnetwork.widths], held_out, reference)
    done(1.0)
    return Solution(corrected.correction, tokens, before, after)


def _streamed(model: MaterializedModel, corrected: Callable[[], MaterializedModel]) -> SuperNetwork:
    """The super-network, computed in fp32, its base's weights taken from `corrected` whenever they are needed."""
    network = empty_super_network(model.source)

    def fetch(name: str) -> torch.Tensor:
        return corrected().corrected_base(unwrapped(name))

    stream_weights(network.base, fetch, lambda name: not of_adapter(name), torch.float32)
    return network


def _deltas(
    network: SuperNetwork, model: MaterializedModel, batches: Sequence[Batch], shrinkage: float, done: Progress
) -> tuple[dict[str, torch.Tensor], int]:
    """The change of each layer's weight, and how many tokens they were solved on."""
    source = model.source
    whole = MaterializedModel(source, Subnetwork(source.elasticity.maximal, "maximal"))
    walk, consumers = Walk(network, batches), cut_consumers(model)
    found: dict[str, torch.Tensor] = {}
    tokens, damaged = 0, []
    for index in range(len(walk)):
        layer = source.architecture.family.layer(index)
        here = [name for name in consumers if name.startswith(f"{layer}.")]
        with summed_moments(network.base, here, whole=True) as (moments, runs):
            walk.step(lambda place, runs=runs: runs(batches[place]))  # type: ignore[misc]
        for name, seen in moments.items():
            tokens = seen.tokens
            if not seen.total.isfinite().all():
                damaged.append(f"{name}: its input holds NaN or Inf")
                continue
            found[name] = _delta(whole, model, name, seen, shrinkage)
            if not found[name].isfinite().all():
                damaged.append(f"{name}: the second moments of its input are singular; give other texts, or more")
        done((index + 1) / len(walk))
    raise_all(
        f"{source.folder}: the sub-network cannot be solved:", damaged, "Are base and adapter damaged, or the texts empty?"
    )
    return {name: delta for name, delta in found.items() if delta.any()}, tokens


def _delta(whole: MaterializedModel, model: MaterializedModel, name: str, seen: Moments, shrinkage: float) -> torch.Tensor:
    """The change of one layer's weight, fp32 [active rows, active columns]; NaN where moments are singular."""
    widths = model.source.elasticity.widths(model.subnetwork.widths)[name]
    kept = take(seen.total, None, widths.columns)
    square = take(kept, widths.columns)
    own, wanted = model.exact(f"{name}.weight"), take(whole.exact(f"{name}.weight"), widths.rows)
    shrink = shrinkage * float(seen.squares.mean())
    if shrink == 0:  # nothing was seen
        return torch.zeros(own.shape)
    right = wanted.double() @ kept - own.double() @ square
    factor, fault = torch.linalg.cholesky_ex(square + shrink * torch.eye(len(square), dtype=square.dtype))
    if fault:
        return torch.full(own.shape, torch.nan)
    return torch.cholesky_solve(right.T, factor).T.float().contiguous()
