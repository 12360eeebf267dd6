"""The blocks that a new search space offers for removal."""

from collections.abc import Sequence

from lonas_edge.errors import LonasEdgeError
from lonas_edge.space.architecture import Architecture


def blocks_of(architecture: Architecture, kinds: Sequence[str], where: str) -> dict[str, str]:
    """Kind by module path of all blocks of some kinds (`BLOCK_KINDS`), by kind and in the model's order.

    Raises:
        LonasEdgeError: The model, which `where` names, has no blocks of a kind.
    """
    known = dict.fromkeys(block.kind for block in architecture.blocks.values())
    missing = [kind for kind in kinds if kind not in known]
    if missing:
        reason = f"expected {','.join(known)}" if known else "no blocks can be removed"
        raise LonasEdgeError(f"{where}: --depth {','.join(missing)}: {reason} for {architecture.model_type}")
    return {path: kind for kind in sorted(kinds) for path, block in architecture.blocks.items() if block.kind == kind}


def removable(architecture: Architecture, kinds: Sequence[str], where: str) -> list[str]:
    """Module paths of the blocks that may be removed: of all layers but the first and the last, which need theirs most.

    At least one attention block, or one whole layer, is not offered: hybrids may have attention in inner layers only.
    """
    last = architecture.family.layer(int(architecture.config.num_hidden_layers) - 1)
    outer = (architecture.family.layer(0) + ".", last + ".")
    free = [path for path in blocks_of(architecture, kinds, where) if not architecture.blocks[path].stays]
    inner = [path for path in free if not f"{path}.".startswith(outer)]
    needed = [path for path, block in architecture.blocks.items() if block.needed]
    return [path for path in inner if path != needed[-1]] if needed and set(needed) <= set(inner) else inner
