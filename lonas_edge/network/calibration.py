"""Calibration: what the layers of a live network are given, over prompts, a batch at a time.

The order of channels needs the second moments of each channel; solving what a cut leaves needs the products of all channels
with those that are kept. Inputs are never kept: sums are taken as the batches pass, in float64; within a batch, products in the
inputs' own dtype.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lonas_edge.families import Part
from lonas_edge.network.parts import outside, take

Batch = Mapping[str, torch.Tensor]  # of `GIVEN`, each [prompts, tokens]
BLOCKS = 4  # of a symmetric matrix, of which five eighths are computed
GIVEN = ("input_ids", "token_type_ids", "attention_mask")  # of a batch, what the body of a model is given, where it is there


def given(batch: Batch) -> dict[str, torch.Tensor]:
    """What of a batch a model's body is given."""
    return {name: batch[name] for name in GIVEN if name in batch}


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input x over the tokens seen.

    Attributes:
        tokens: How many tokens; padding does not count.
        squares: Sum of x^2 of each channel, float64 [in].
        products: Sum of x x_K^T, K the channels that were asked for, float64 [in, K]; None where none were. Its first rows are
            those of K, of which what is above the diagonal may be missing; the others follow.
    """

    tokens: int
    squares: torch.Tensor
    products: torch.Tensor | None = None


@contextmanager
def observed(model: Any, layers: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[Callable[[Batch], None]]:
    """See what layers are given.

    Args:
        model: A Hugging Face model.
        layers: Module paths.
        see: Called with a layer's path and its input, [tokens, in], padding left out.

    Yields:
        To be told the batch that runs next.
    """
    mask = torch.ones(0)

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, inputs: see(name, inputs[0].detach()[mask.bool()])

    def runs(batch: Batch) -> None:
        nonlocal mask
        mask = batch["attention_mask"]

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def _added(products: torch.Tensor | None, inputs: torch.Tensor, columns: Part) -> torch.Tensor:
    """The products of a batch added to those before: a block of columns at a time, each from its own first row on."""
    size = inputs.shape[1]
    kept, others = take(inputs, None, columns), outside(columns, size)
    ordered = torch.cat([kept, take(inputs, None, others)], 1) if others else kept
    if products is None:
        products = torch.zeros(size, kept.shape[1], dtype=torch.float64)
    block = -(-kept.shape[1] // BLOCKS)
    for start in range(0, kept.shape[1], block):
        products[start:, start : start + block].add_(ordered[:, start:].T @ kept[:, start : start + block])
    return products


@contextmanager
def summed_moments(
    model: Any, layers: Mapping[str, Part | None]
) -> Iterator[tuple[dict[str, Moments], Callable[[Batch], None]]]:
    """Sum the second moments of what layers are given while a model runs.

    Args:
        model: A Hugging Face model.
        layers: By module path, the channels K of its input whose products with all are summed: in x K numbers of 8 bytes are
            kept, and a quarter as many of the input's own dtype are there while a batch is added. None: squares alone.

    Yields:
        Moments by module path, as far as they are summed, and what is to be told the batch that runs next.
    """
    found: dict[str, Moments] = {}

    def see(name: str, inputs: torch.Tensor) -> None:
        before, columns = found.get(name, Moments(0, torch.zeros(()))), layers[name]
        exact = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        squares = before.squares + exact.square().sum(0, dtype=torch.float64)
        products = None if columns is None else _added(before.products, inputs, columns)
        found[name] = Moments(before.tokens + len(inputs), squares, products)

    with observed(model, list(layers), see) as runs:
        yield found, runs


def second_moments(model: Any, layers: Iterable[str], batches: Iterable[Batch]) -> dict[str, Moments]:
    """Sum the squares of what layers are given.

    Args:
        model: A Hugging Face model.
        layers: Module paths.
        batches: The prompts.

    Returns:
        Moments by module path, without products; none where there are no batches.
    """
    training = model.training
    model.eval()
    try:
        with summed_moments(model, dict.fromkeys(layers)) as (found, runs), torch.inference_mode():
            for batch in batches:
                runs(batch)
                model.base_model(**given(batch), use_cache=False)  # the head is after all of them
    finally:
        model.train(training)
    return found
