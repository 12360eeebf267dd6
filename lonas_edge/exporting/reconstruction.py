"""Reconstruct a sub-network by least squares in an export (`--solve`), and use the result if it is better."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Reconstruction
from lonas_edge.exporting.requirements import require_tokenizer
from lonas_edge.families import CAUSAL_LM
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.reconstruction import SHRINKAGE, cut_consumers, reconstruct

HELD_OUT = 8  # prompts of the reconstruction for each held-out one


# prompts of the reconstruction, and others that measure its effect; no example is in both
ReconstructionPrompts = tuple[HeldOut, HeldOut]


def read_reconstruction_prompts(model: MaterializedModel, tokenizer: Any, data: Path, prompts: int) -> ReconstructionPrompts:
    """Read instruction data; an eighth as many prompts again are held out."""
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
    require_tokenizer("--solve", source, tokenizer)
    held_out = max(1, prompts // HELD_OUT)
    chosen = read_held_out(source, data, prompts + held_out, 0, option="--num-prompts")
    first, second = chosen.split(held_out)
    return second, first


def reconstruct_model(
    model: MaterializedModel, prompts: ReconstructionPrompts, tokenizer: Any, folder: Path, done: Callable[[float], None]
) -> tuple[MaterializedModel, Reconstruction]:
    """Reconstruct a sub-network; the correction is written to `folder`, and read from there while it is used.

    Returns:
        The sub-network, with the correction if it lowers the KL on the held-out prompts, and the record.
    """
    data_prompts, held_out = prompts
    solution = reconstruct(model, data_prompts.batches(tokenizer), held_out.batches(tokenizer), folder, SHRINKAGE, done)
    record = Reconstruction(
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
    return (MaterializedModel(model.source, model.subnetwork, solution.correction) if record.kept else model), record
