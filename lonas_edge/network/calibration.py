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
from lonas_edge.network.parts import take

Batch = Mapping[str, torch.Tensor]  # of `GIVEN`, each [prompts, tokens]
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
        products: Sum of x x_K^T, K the channels that were asked for, float64 [in, K]; None where none were.
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


@contextmanager
def summed_moments(
    model: Any, layers: Mapping[str, Part | None]
) -> Iterator[tuple[dict[str, Moments], Callable[[Batch], None]]]:
    """Sum the second moments of what layers are given while a model runs.

    Args:
        model: A Hugging Face model.
        layers: By module path, the channels K of its input whose products with all are summed: in x K numbers of 8 bytes are
            kept, and in x K of the input's own dtype are there while a batch is added. None: squares alone.

    Yields:
        Moments by module path, as far as they are summed, and what is to be told the batch that runs next.
    """
    found: dict[str, Moments] = {}

    def see(name: str, inputs: torch.Tensor) -> None:
        columns, before = layers[name], found.get(name)
        squares = inputs.double().square().sum(0)
        if before is None:
            products = None if columns is None else (inputs.T @ take(inputs, None, columns)).double()
            found[name] = Moments(len(inputs), squares, products)
            return
        if columns is not None and before.products is not None:
            before.products.add_(inputs.T @ take(inputs, None, columns))
        found[name] = Moments(before.tokens + len(inputs), before.squares + squares, before.products)

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
