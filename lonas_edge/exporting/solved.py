"""Least-squares reconstruction in an export (`--solve`): its prompts, its effect on held-out ones, and whether it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.solved import Solved
from lonas_edge.network.solving import SHRINKAGE, cut_consumers, solve

HELD_OUT = 8  # prompts of the reconstruction for each held-out one


@dataclass(frozen=True)
class SolvePrompts:
    """Prompts of the reconstruction, and others that measure its effect; no example is in both."""

    solved_on: HeldOut
    held_out: HeldOut


def read_solve_prompts(model: MaterializedModel, tokenizer: Any, data: Path, prompts: int) -> SolvePrompts:
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
    return SolvePrompts(second, first)


def solve_model(
    model: MaterializedModel, prompts: SolvePrompts, tokenizer: Any, folder: Path, done: Callable[[float], None]
) -> tuple[MaterializedModel, Solved]:
    """Reconstruct a sub-network; the correction is written to `folder`, and read from there while it is used.

    Returns:
        The sub-network, with the correction where it lowers the KL on the held-out prompts, and the record.

    Raises:
        LonasEdgeError: If too few prompts fit, or a layer's inputs are not finite.
    """
    solved_on, held_out = prompts.solved_on, prompts.held_out
    solution = solve(model, solved_on.batches(tokenizer), held_out.batches(tokenizer), folder, SHRINKAGE, done)
    solved = Solved(
        data=solved_on.path.name,
        sha256=solved_on.sha256,
        prompts=solved_on.prompts,
        tokens=solution.tokens,
        shrinkage=SHRINKAGE,
        held_out=held_out.prompts,
        before=solution.before,
        after=solution.after,
        kept=solution.after < solution.before,
    )
    return (MaterializedModel(model.source, model.subnetwork, solution.correction) if solved.kept else model), solved
