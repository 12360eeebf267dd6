"""The removable blocks of a search space: those with little effect when removed alone, measured before training.

KL ranks blocks of one kind well before training; it does not compare kinds. So blocks are compared with others of
their own kind.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress, silent
from lonas_edge.search.sensitivity import measure_sensitivity
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity
from lonas_edge.space.search_space import BLOCK_WIDTHS, Group, Member, SearchSpace

EXPENSIVE = 5.0  # times the median of its kind: such a block is kept


@dataclass(frozen=True)
class BlockCost:
    """KL from the unpruned model if a block is removed, in nats; None if it was not measured."""

    path: str
    kind: str
    kl: float | None = None


def candidates(architecture: Architecture, kinds: Sequence[str], where: str) -> list[BlockCost]:
    """List the blocks of some kinds (`BLOCK_KINDS`) in the model's order; `where` names the model in errors."""
    known = dict.fromkeys(block.kind for block in architecture.blocks.values())
    missing = [kind for kind in kinds if kind not in known]
    if missing:
        reason = f"expected {','.join(known)}" if known else "no blocks can be removed"
        raise LonasEdgeError(f"{where}: --depth {','.join(missing)}: {reason} for {architecture.model_type}")
    return [BlockCost(path, block.kind) for path, block in architecture.blocks.items() if block.kind in kinds]


def measured(
    base: Source,
    blocks: Sequence[BlockCost],
    data: Path,
    num_prompts: int,
    prompt: str | None,
    seed: int,
    progress: Progress = silent,
) -> list[BlockCost]:
    """Measure the KL without each block."""
    held = read_held_out(base, data, num_prompts, seed, prompt, "--num-prompts")
    from lonas_edge.network.super_network import load_super_network
    from lonas_edge.network.tokenizer import require_tokenizer

    tokenizer = require_tokenizer(base.base.folder, "measuring the KL")
    batches = held.batches(tokenizer)
    groups = tuple(Group((Member(block.path, "block", block.path),), BLOCK_WIDTHS) for block in blocks)
    positions = {block.path: index for index, block in enumerate(blocks)}
    elasticity = Elasticity(base.architecture, SearchSpace(groups), {}, {}, {}, {}, positions)
    progress("Loading the model", None)
    network = load_super_network(replace(base, elasticity=elasticity))
    reference = network.reference(batches)
    table = measure_sensitivity(
        network, batches, reference, range(len(blocks)), lambda done: progress("Measuring the KL without each block", done)
    )
    costs = [replace(block, kl=row[1]) for block, row in zip(blocks, table.rows, strict=True)]
    problems = [f"without {block.path}: {block.kl}" for block in costs if not math.isfinite(block.kl or 0.0)]
    raise_all(f"{base.base.folder}: the KL is not finite:", problems, "Is the base checkpoint damaged?")
    return costs


def offered(architecture: Architecture, blocks: Sequence[BlockCost]) -> tuple[list[BlockCost], list[BlockCost]]:
    """Choose the removable blocks. The attention of at least one layer is kept, or one whole layer.

    Args:
        architecture: The model.
        blocks: The blocks in the model's order, either all measured or none.

    Returns:
        The removable blocks by kind, the cheapest first (in the model's order if not measured); and the kept ones: the
        expensive ones, or, if not measured, those of the first and last layer.
    """
    kinds = {
        block.kind: [other.kl for other in blocks if other.kind == block.kind and other.kl is not None] for block in blocks
    }
    limits = {kind: EXPENSIVE * statistics.median(values) for kind, values in kinds.items() if values}
    last = architecture.family.layer(int(architecture.config.num_hidden_layers) - 1)
    outer = (architecture.family.layer(0) + ".", last + ".")

    def cheap(block: BlockCost) -> bool:
        return not f"{block.path}.".startswith(outer) if block.kl is None else block.kl <= limits[block.kind]

    removable = sorted(filter(cheap, blocks), key=lambda block: (block.kind, block.kl or 0.0))
    needed = {path for path, block in architecture.blocks.items() if block.needed}
    last_ones = [block for block in removable if block.path in needed]
    if needed and len(last_ones) == len(needed):
        removable.remove(last_ones[-1])
    return removable, [block for block in blocks if block not in removable]
