"""What a weight format costs in quality, measured on the maximal network and added to every other.

Compressing each candidate anew would take longer than scoring it. INT8 costs next to nothing (0.005 to 0.01 nats); what INT4
costs is taken to be the maximal network's, whatever the widths. That is an approximation: narrower networks suffer more.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lonas_edge.data.encoding import IGNORED
from lonas_edge.formats import FORMATS
from lonas_edge.ir import compress
from lonas_edge.network.divergence import cross_entropy, kl_divergence
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import empty_model, set_parameter
from lonas_edge.network.source import Source
from lonas_edge.space.subnetwork import select

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lonas_edge.network.super_network import Batch, SuperNetwork


def format_damage(
    quality: str,
    source: Source,
    weight_format: str,
    network: "SuperNetwork",
    batches: "Sequence[Batch]",
    reference: Sequence[torch.Tensor],
) -> float:
    """What a weight format adds to the quality of the maximal network.

    Args:
        quality: `kl` or `loss`.
        source: Base model, adapter and search space.
        weight_format: One of `FORMATS`.
        network: The super-network.
        batches: Prompts with the positions that count.
        reference: As of `SuperNetwork.reference`.

    Returns:
        The difference, in nats.
    """
    live = _compressed(source, weight_format)
    family, total, positions = network.family, 0.0, 0
    with torch.inference_mode():
        for batch, kept in zip(batches, reference, strict=True):
            counted = batch["labels"] != IGNORED
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            hidden = family.hidden(live, **inputs)[:, batch["logits_to_keep"]][counted]
            whole, stored = family.logits(network.base, kept), family.logits(live, hidden)
            if quality == "kl":
                total += kl_divergence(whole, stored).item()
            else:
                labels = batch["labels"][counted]
                total += (cross_entropy(stored, labels) - cross_entropy(whole, labels)).item()
            positions += len(hidden)
    return total / positions


def _compressed(source: Source, weight_format: str) -> "PreTrainedModel":
    """The maximal network with the weights that an IR of that format stores, in fp32."""
    model = MaterializedModel(source, select(source.space, "maximal"))
    live = empty_model(model.config())
    chosen = compress.schemes(model, FORMATS[weight_format])
    for name, matrix in compress.compress_matrices(model, chosen):
        set_parameter(live, name, torch.from_numpy(matrix.restored(model.tensor(name).numpy())[0]))
    for name in model.shapes.keys() - chosen.keys():
        set_parameter(live, name, model.tensor(name))
    live.tie_weights()
    return live
