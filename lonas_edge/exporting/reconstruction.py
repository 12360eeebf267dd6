"""Least-squares reconstruction in an export (`--solve`): its prompts, its effect on held-out ones, and whether it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Reconstruction
from lonas_edge.families import CAUSAL_LM
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.reconstruction import SHRINKAGE, cut_consumers, reconstruct

HELD_OUT = 8  # prompts of the reconstruction for each held-out one


@dataclass(frozen=True)
class ReconstructionPrompts:
    """Prompts of the reconstruction, and others that measure its effect; no example is in both."""

    data_prompts: HeldOut
    held_out: HeldOut


def read_reconstruction_prompts(model: MaterializedModel, tokenizer: Any, data: Path, prompts: int) -> ReconstructionPrompts:
    """Read instruction data; an eighth as many prompts again are held out.

    Raises:
        LonasEdgeError: If the sub-network has nothing to reconstruct, there is no tokenizer, or too little data.
    """
    source = model.source
    source.architecture.require(CAUSAL_LM, "--solve")
    if source.own:
        raise LonasEdgeError(
            f"{source.folder}: fine-tuned for its {source.own.name} sub-network (`train --from`); the unpruned network that "
            "--solve compares with is gone. Remove --solve."
        )
    if not cut_consumers(model.subnetwork):
        raise LonasEdgeError(
            f"{source.folder}: --solve has no effect: its {model.subnetwork.name} sub-network has full MLPs and all heads. "
            "Remove --solve, or choose another --subnet."
        )
    if tokenizer is None:
        raise LonasEdgeError(f"{source.base.folder}: no tokenizer, which --solve needs. Save the model's tokenizer there.")
    held_out = max(1, prompts // HELD_OUT)
    chosen = read_held_out(source, data, prompts + held_out, 0, option="--num-prompts")
    first, second = chosen.split(held_out)
    return ReconstructionPrompts(second, first)


def reconstruct_model(
    model: MaterializedModel, prompts: ReconstructionPrompts, tokenizer: Any, folder: Path, done: Callable[[float], None]
) -> tuple[MaterializedModel, Reconstruction]:
    """Reconstruct a sub-network; the correction is written to `folder`, and read from there while it is used.

    Returns:
        The sub-network, with the correction where it lowers the KL on the held-out prompts, and the record.

    Raises:
        LonasEdgeError: If too few prompts fit, or a layer's inputs are not finite.
    """
    data_prompts, held_out = prompts.data_prompts, prompts.held_out
    solution = reconstruct(model, data_prompts.batches(tokenizer), held_out.batches(tokenizer), folder, SHRINKAGE, done)
    reconstruction = Reconstruction(
        data=data_prompts.path.name,
        sha256=data_prompts.sha256,
        prompts=data_prompts.prompts,
        tokens=solution.tokens,
        shrinkage=SHRINKAGE,
        held_out=held_out.prompts,
        before=solution.before,
        after=solution.after,
        kept=solution.after < solution.before,
    )
    return (
        MaterializedModel(model.source, model.subnetwork, solution.correction) if reconstruction.kept else model
    ), reconstruction
