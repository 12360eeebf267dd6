"""Layer inputs of a live network: their second moments over prompts, batch by batch.

The order of channels needs the second moments of each channel; least-squares reconstruction needs the products of all channels
with the kept ones. Inputs are never stored: sums are accumulated in float64; within a batch, products are in the inputs' dtype.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lonas_edge.families import Part
from lonas_edge.network.parts import outside, take

Batch = Mapping[str, torch.Tensor]  # of `GIVEN`, each [prompts, tokens]
BLOCKS = 4  # of a symmetric matrix, of which five eighths are computed
GIVEN = ("input_ids", "token_type_ids", "attention_mask")  # possible inputs of a model's body


def given(batch: Batch) -> dict[str, torch.Tensor]:
    """Select the inputs of a model's body from a batch."""
    return {name: batch[name] for name in GIVEN if name in batch}


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input x over the tokens seen.

    Attributes:
        tokens: Number of tokens, without padding.
        squares: Sum of x^2 of each channel, float64 [in].
        products: Sum of x x_K^T, K the requested channels, float64 [in, K]; None without any. Its first rows are those of K,
            whose upper triangle may be missing; the others follow.
    """

    tokens: int
    squares: torch.Tensor
    products: torch.Tensor | None = None


def _added(products: torch.Tensor | None, inputs: torch.Tensor, columns: Part) -> torch.Tensor:
    """Add a batch's products: a block of columns at a time, each from its own first row on."""
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
    """Sum the second moments of layers' inputs while a model runs; padding does not count.

    Args:
        model: A Hugging Face model.
        layers: By module path, the channels K whose products with all channels are summed, or None for squares alone.
            Products take in x K x 8 bytes, and a quarter as many elements of the input's dtype while a batch is added.

    Yields:
        Moments by module path so far, and a function to call with each batch before it runs.
    """
    moments: dict[str, Moments] = {}
    mask = torch.ones(0)

    def add(name: str, inputs: torch.Tensor) -> None:
        before, columns = moments.get(name, Moments(0, torch.zeros(()))), layers[name]
        exact = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        squares = before.squares + exact.square().sum(0, dtype=torch.float64)
        products = None if columns is None else _added(before.products, inputs, columns)
        moments[name] = Moments(before.tokens + len(inputs), squares, products)

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, inputs: add(name, inputs[0].detach()[mask.bool()])

    def runs(batch: Batch) -> None:
        nonlocal mask
        mask = batch["attention_mask"]

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        yield moments, runs
    finally:
        for handle in handles:
            handle.remove()


def second_moments(model: Any, layers: Iterable[str], batches: Iterable[Batch]) -> dict[str, Moments]:
    """Sum the squares of layers' inputs over batches; return moments by module path, without products."""
    training = model.training
    model.eval()
    try:
        with summed_moments(model, dict.fromkeys(layers)) as (moments, runs), torch.inference_mode():
            for batch in batches:
                runs(batch)
                model.base_model(**given(batch), use_cache=False)  # without the head, which is not needed
    finally:
        model.train(training)
    return moments
