"""Blocks that are left out: the residual passes by a layer's attention or MLP.

In a super-network a block is switched off in place, and keeps its parameters; in a materialized model there is nothing in its
place. Either hands on a zero, which the residual adds, or the residual itself where the block adds to it. What a block's norms
make of a zero is zero, too: those behind it are RMS norms without an offset, and those in front are not asked.

A cache of keys and values is also how transformers knows the position of the next token, and asks the first layer for it. So
attention that is left out keeps one zero a token there. An IR has no such thing: `without_caches` takes it away.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import Cache

from lonas_edge.families import Block, key_value_heads
from lonas_edge.space.architecture import Architecture


class LeftOut(nn.Module):
    """What stands in the place of a block that is left out."""

    def __init__(self, block: Block, place: int):
        """Set up.

        Args:
            block: What was there.
            place: Index of its decoder layer.
        """
        super().__init__()
        self.block, self.layer_idx, self.cached = block, place, block.cached

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Give nothing; see `passed_by`. No `forward`: optimum-intel gives every attention of some families one of its own."""
        return passed_by(self.block, self.layer_idx if self.cached else None, args, kwargs)


class ElasticBlock(nn.Module):
    """Mixed into the class of a live block: `left_out` says whether it is passed by."""

    block: Block
    left_out: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the block does, or nothing."""
        if self.left_out:
            return passed_by(self.block, getattr(self, "layer_idx", None), args, kwargs)
        return super().forward(*args, **kwargs)


def passed_by(block: Block, place: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a block gives that is left out.

    Args:
        block: Says how many things it returns.
        place: Index of its cache; None where it has none.
        args: What it is given; the hidden states [batch, tokens, hidden] first, or as `hidden_states`; where the block adds to
            the residual, that second, of the same shape.
        kwargs: What it is given by name; a `Cache` may be among it.

    Returns:
        The residual where the block adds to it, a zero without dimensions otherwise, where its output is expected.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    if place is not None and block.cached and cache is not None:
        zeros = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        cache.update(zeros, zeros, place)
    nothing = args[1] if block.adds_residual else hidden.new_zeros(())
    return nothing if block.results == 0 else (nothing, *[None] * (block.results - 1))


def make_block_elastic(module: Any, block: Block) -> ElasticBlock:
    """Make a live block one that can be left out, in place; it is there at first.

    Args:
        module: The block, of whatever class.
        block: Says what it is.

    Returns:
        The block.
    """
    if not isinstance(module, ElasticBlock):
        module.__class__ = type(type(module).__name__, (ElasticBlock, type(module)), {})
    module.block, module.left_out = block, False
    elastic: ElasticBlock = module
    return elastic


def leave_out(model: Any, architecture: Architecture, left_out: Collection[str]) -> None:
    """Take blocks out of a live model, with the norms that serve them alone.

    Args:
        model: A Hugging Face model.
        architecture: What it is built by.
        left_out: Module paths of the blocks.
    """
    for module in architecture.absent(left_out):
        owner, _, leaf = module.rpartition(".")
        place = int(architecture.split(module)[0].rpartition(".")[2])
        block = architecture.blocks.get(module)
        setattr(model.get_submodule(owner), leaf, LeftOut(block, place) if block else nn.Identity())


def without_caches(model: Any, architecture: Architecture) -> list[int]:
    """Number the caches of a live model so that only attention that is there has one. It is converted then, and no more.

    Args:
        model: A Hugging Face model without some of its blocks.
        architecture: What it is built by.

    Returns:
        Heads of keys and values in each of the caches.
    """
    kept = []
    for path, block in architecture.blocks.items():
        module = model.get_submodule(path)
        if isinstance(module, LeftOut):
            module.cached = False
        elif block.cached:
            kept.append(module.layer_idx)
            module.layer_idx = len(kept) - 1
    heads = [key_value_heads(architecture.layer_config(index)) for index in kept]
    if len(kept) == architecture.config.num_hidden_layers:
        return heads
    model.config = copy.copy(model.config)  # the body keeps its own, and walks all layers
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    return heads
