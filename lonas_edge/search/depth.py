"""Which blocks a search space offers to leave out: those that cost little alone, measured on the base before training.

KL orders blocks of one kind well before training; it does not compare kinds (docs/guide/search.md). So what is dear is judged
among the blocks of its own kind.
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
from lonas_edge.search.damage import measure_damage
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity
from lonas_edge.space.search_space import BLOCK_WIDTHS, Group, Member, SearchSpace

DEAR = 5.0  # times the median of its kind: such a block is kept


@dataclass(frozen=True)
class BlockCost:
    """What leaving a block out costs: KL from the whole network, in nats; None where it was not measured."""

    path: str
    kind: str
    kl: float | None = None


def candidates(architecture: Architecture, kinds: Sequence[str], where: str) -> list[BlockCost]:
    """The blocks of some kinds, in the model's order.

    Args:
        architecture: The model.
        kinds: attention, mlp.
        where: What to call the model in an error.

    Returns:
        The blocks, not measured.

    Raises:
        LonasEdgeError: If the family has no such blocks.
    """
    known = dict.fromkeys(block.kind for block in architecture.blocks.values())
    missing = [kind for kind in kinds if kind not in known]
    if missing:
        offered = f"it has {', '.join(known)}" if known else f"{architecture.model_type} has no blocks that can be left out"
        raise LonasEdgeError(f"{where}: --depth {', '.join(missing)}: {offered}")
    return [BlockCost(path, block.kind) for path, block in architecture.blocks.items() if block.kind in kinds]


def measured(
    base: Source,
    blocks: Sequence[BlockCost],
    data: Path,
    prompts: int,
    prompt: str | None,
    seed: int,
    progress: Progress = silent,
) -> list[BlockCost]:
    """Measure what leaving each block out alone costs.

    Args:
        base: The base model, or an adapter on it.
        blocks: The blocks.
        data: Prompts with answers.
        prompts: How many of them are taken.
        prompt: Name of their template; `choose_prompt` decides when None.
        seed: Of the choice.
        progress: Called with what is being done, and the share done.

    Returns:
        The same blocks with their costs.

    Raises:
        LonasEdgeError: If the data or the base cannot be used.
    """
    held = read_held_out(base, data, prompts, seed, prompt, "--num-prompts")
    from lonas_edge.network.super_network import load_super_network
    from lonas_edge.network.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base.base.folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{base.base.folder}: no tokenizer; measuring needs one")
    batches = held.batches(tokenizer)
    groups = tuple(Group((Member(block.path, "block", block.path),), BLOCK_WIDTHS) for block in blocks)
    places = {block.path: index for index, block in enumerate(blocks)}
    elasticity = Elasticity(base.architecture, SearchSpace(groups), {}, {}, {}, {}, places)
    progress("Loading the model", None)
    network = load_super_network(replace(base, elasticity=elasticity))
    table = measure_damage(
        network,
        batches,
        network.reference(batches),
        range(len(blocks)),
        lambda done: progress("Measuring what each block costs", done),
    )
    found = [replace(block, kl=table.of(index, 1)) for index, block in enumerate(blocks)]
    damaged = [f"without {block.path}: {block.kl}" for block in found if not math.isfinite(block.kl or 0.0)]
    raise_all(f"{base.base.folder}: answers are not finite:", damaged, "Is the base checkpoint damaged?")
    return found


def offered(architecture: Architecture, blocks: Sequence[BlockCost]) -> tuple[list[BlockCost], list[BlockCost]]:
    """Decide which blocks are offered. One layer's attention at least is kept, so that every sub-network has some.

    Args:
        architecture: The model.
        blocks: The blocks, in the model's order; either all measured or none.

    Returns:
        Those that are offered, kind by kind, the cheapest first, or in the model's order where nothing was measured; and those
        that are kept: the dear ones, or, unmeasured, those of the first and last layer.
    """
    kinds = {
        block.kind: [other.kl for other in blocks if other.kind == block.kind and other.kl is not None] for block in blocks
    }
    limits = {kind: DEAR * statistics.median(values) for kind, values in kinds.items() if values}
    last = architecture.family.layer(int(architecture.config.num_hidden_layers) - 1)
    outer = (architecture.family.layer(0) + ".", last + ".")

    def cheap(block: BlockCost) -> bool:
        return not block.path.startswith(outer) if block.kl is None else block.kl <= limits[block.kind]

    found = sorted(filter(cheap, blocks), key=lambda block: (block.kind, block.kl or 0.0))
    caches = {path for path, block in architecture.blocks.items() if block.cached}
    dearest = [block for block in found if block.path in caches]
    if caches and len(dearest) == len(caches):
        found.remove(dearest[-1])
    return found, [block for block in blocks if block not in found]
