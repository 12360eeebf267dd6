"""Removed blocks: only the residual passes a layer's attention or MLP; a whole layer passes its input on.

In a super-network a block is switched off in place and keeps its parameters; a materialized model has nothing in its place,
and no gap where a whole layer was: the others are renumbered, as in a model with fewer layers.
Either returns a zero, which the residual adds, or the residual itself where the block adds it. A norm after the block turns a
zero into zero: it is an RMS norm without an offset. A norm before it is not used.

transformers reads the position of the next token from the first layer's cache of keys and values. So removed attention writes
one zero per token there. Of layers with a state it asks the last whether there are earlier tokens, so a removed one has a
state, too. An IR does not need this: `renumber_caches` undoes it.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import Cache

from lonas_edge.families import Block, key_value_heads
from lonas_edge.space.architecture import Architecture


class RemovedBlock(nn.Module):
    """Take the place of a removed block."""

    def __init__(self, block: Block, index: int):
        """Remember the block and the index of its decoder layer."""
        super().__init__()
        self.block, self.layer_idx, self.cached = block, index, block.cached or block.state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `skip` does. There is no `forward`: optimum-intel replaces the one of every attention of some
        families.
        """
        return skip(self.block, self.layer_idx if self.cached else None, args, kwargs)


class ElasticBlock(nn.Module):
    """Mixin for the class of a live block: `removed` says whether it is skipped."""

    block: Block
    removed: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block, or skip it."""
        if self.removed:
            return skip(self.block, getattr(self, "layer_idx", None), args, kwargs)
        return super().forward(*args, **kwargs)


def skip(block: Block, index: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the output of a removed block: the residual if the block adds it, else a zero without dimensions.

    A whole layer returns its input. Removed attention still writes one zero per token to the cache number `index`, and a block
    with a state a zero. The inputs
    are hidden states [batch, tokens, hidden] first, or as `hidden_states`; then the residual, if the block adds it; and a
    `Cache` by any name.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    if index is not None and block.cached and cache is not None:
        zeros = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        cache.update(zeros, zeros, index)
    elif index is not None and block.state and cache is not None:
        cache.update_conv_state(hidden.new_zeros(hidden.shape[0], 1, 1), index)
    nothing = hidden if block.whole else args[1] if block.adds_residual else hidden.new_zeros(())
    return nothing if block.results == 0 else (nothing, *[None] * (block.results - 1))


def make_block_elastic(module: Any, block: Block) -> ElasticBlock:
    """Make a live block removable, in place."""
    if not isinstance(module, ElasticBlock):
        module.__class__ = type(type(module).__name__, (ElasticBlock, type(module)), {})
    module.block, module.removed = block, False
    elastic: ElasticBlock = module
    return elastic


def remove_blocks(model: Any, architecture: Architecture, removed: Collection[str]) -> None:
    """Remove blocks from a live model, and the norms that serve them alone."""
    for module in architecture.removed_modules(removed):
        owner, _, leaf = module.rpartition(".")
        index = int(architecture.split(module)[0].rpartition(".")[2])
        block = architecture.all_blocks.get(module)
        setattr(model.get_submodule(owner), leaf, RemovedBlock(block, index) if block else nn.Identity())


def renumber_caches(model: Any, architecture: Architecture) -> list[int]:
    """Renumber the caches of a live model, so that removed blocks have none; it can then be converted, but not run.

    Returns:
        The number of key-value heads of each attention that is left.
    """
    kept: list[int] = []
    heads: list[int] = []
    for path, block in architecture.all_blocks.items():
        module = model.get_submodule(path)
        if isinstance(module, RemovedBlock):
            module.cached = False
        elif block.cached or block.state:
            kept.append(module.layer_idx)
            module.layer_idx = len(kept) - 1
            heads += [key_value_heads(architecture.of_layer(path))] if block.cached else []
        elif getattr(module, "is_kv_shared_layer", False):  # its layer of the cache comes before
            module.kv_shared_layer_index = kept.index(module.kv_shared_layer_index)
    if len(kept) == sum(block.cached or block.state for block in architecture.all_blocks.values()):
        return heads
    model.config = copy.copy(model.config)  # the body keeps its own, and walks all layers
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    if getattr(model.config, "num_kv_shared_layers", None):
        model.config.num_kv_shared_layers = 0  # the layers that are counted here have one each
    return heads
