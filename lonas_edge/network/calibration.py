"""Second moments of the inputs of a live network's layers over prompts, batch by batch; inputs are never stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Batch = Mapping[str, torch.Tensor]  # of `GIVEN`, each [prompts, tokens]
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
    """

    tokens: int
    squares: torch.Tensor


def second_moments(model: Any, layers: Iterable[str], batches: Iterable[Batch]) -> dict[str, Moments]:
    """Sum the squares of layers' inputs over batches, in float64; padding does not count. Return moments by module path."""
    moments: dict[str, Moments] = {}
    mask = torch.ones(0, dtype=torch.bool)

    def add(name: str, inputs: torch.Tensor) -> None:
        before = moments.get(name, Moments(0, torch.zeros(())))
        exact = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        moments[name] = Moments(before.tokens + len(inputs), before.squares + exact.square().sum(0, dtype=torch.float64))

    def hook(name: str) -> Any:
        return lambda _module, inputs: add(name, inputs[0].detach()[mask])

    training = model.training
    model.eval()
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = batch["attention_mask"].bool()
                model.base_model(**given(batch), use_cache=False)  # without the head, which is not needed
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return moments
