"""An export whose cut is solved: the texts, what solving them gives, and whether it is taken."""

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

HELD_OUT = 8  # prompts to solve on for one that is held out, which three networks are asked


@dataclass(frozen=True)
class Texts:
    """Prompts to solve on, and others that tell what it gives; no example is in both."""

    solved_on: HeldOut
    held_out: HeldOut


def read_texts(model: MaterializedModel, tokenizer: Any, data: Path, prompts: int) -> Texts:
    """Read the data, before anything is computed.

    Args:
        model: The materialized sub-network.
        tokenizer: The base's, or None.
        data: Instruction data, as of training.
        prompts: How many to solve on; an eighth as many more are held out.

    Returns:
        The prompts.

    Raises:
        LonasEdgeError: If the sub-network cuts nothing that can be solved, there is no tokenizer, or too little data.
    """
    source = model.source
    source.architecture.require(CAUSAL_LM, "--solve")
    if source.own:
        raise LonasEdgeError(
            f"{source.folder}: specialized for its {source.own.name} sub-network (`train --from`): there is no whole network "
            "any more that --solve could bring it nearer to. Leave it out."
        )
    if not cut_consumers(model.subnetwork):
        raise LonasEdgeError(
            f"{source.folder}: its {model.subnetwork.name} sub-network narrows no MLP and no heads, so that --solve does "
            "nothing. Leave it out, or name another --subnet."
        )
    if tokenizer is None:
        raise LonasEdgeError(f"{source.base.folder}: has no tokenizer, which --solve needs to read {data}")
    held_out = max(1, prompts // HELD_OUT)
    chosen = read_held_out(source, data, prompts + held_out, 0, option="--solve-prompts")
    first, second = chosen.split(held_out)
    return Texts(second, first)


def solve_model(
    model: MaterializedModel, texts: Texts, tokenizer: Any, folder: Path, done: Callable[[float], None]
) -> tuple[MaterializedModel, Solved]:
    """Solve a sub-network; keep it as it is where the correction makes its answers worse.

    Args:
        model: The materialized sub-network.
        texts: The prompts.
        tokenizer: The base's.
        folder: An existing directory, from which the correction reads what is found.
        done: Called with the share that is done.

    Returns:
        The sub-network, with the correction where that is of use, and what solving gave.

    Raises:
        LonasEdgeError: If too few prompts fit, or what a layer is given is not finite.
    """
    solution = solve(model, texts.solved_on.batches(tokenizer), texts.held_out.batches(tokenizer), folder, SHRINKAGE, done)
    solved = Solved(
        data=texts.solved_on.path.name,
        sha256=texts.solved_on.sha256,
        prompts=texts.solved_on.prompts,
        tokens=solution.tokens,
        shrinkage=SHRINKAGE,
        held_out=texts.held_out.prompts,
        before=solution.before,
        after=solution.after,
        kept=solution.after < solution.before,
    )
    return (MaterializedModel(model.source, model.subnetwork, solution.correction) if solved.kept else model), solved
