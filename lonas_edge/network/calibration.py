"""Calibration: what the layers of a live network are given, over prompts, a batch at a time.

The order of channels needs the second moments of each channel; solving what a cut leaves needs their whole matrix. Inputs are
never kept: moments are summed as the batches pass, in float64; within a batch, the whole matrix in the inputs' own dtype.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

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
        total: Sum of x x^T, float64 [in, in]; of its diagonal alone, [in].
    """

    tokens: int
    total: torch.Tensor

    @property
    def squares(self) -> torch.Tensor:
        """Sum of x^2 of each channel, float64 [in]."""
        return self.total.diagonal() if self.total.dim() == 2 else self.total


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
    model: Any, layers: Sequence[str], whole: bool = False
) -> Iterator[tuple[dict[str, Moments], Callable[[Batch], None]]]:
    """Sum the second moments of what layers are given while a model runs.

    Args:
        model: A Hugging Face model.
        layers: Module paths. With `whole`, each takes in^2 numbers of 8 bytes.
        whole: Whether the whole matrix is summed, or its diagonal.

    Yields:
        Moments by module path, as far as they are summed, and what is to be told the batch that runs next.
    """
    found: dict[str, Moments] = {}

    def see(name: str, inputs: torch.Tensor) -> None:
        total = (inputs.T @ inputs).double() if whole else inputs.double().square().sum(0)
        before = found.get(name)
        count = len(inputs) + (before.tokens if before else 0)
        found[name] = Moments(count, total if before is None else before.total + total)

    with observed(model, layers, see) as runs:
        yield found, runs


def second_moments(model: Any, layers: Sequence[str], batches: Iterable[Batch], whole: bool = False) -> dict[str, Moments]:
    """Sum the second moments of what layers are given.

    Args:
        model: A Hugging Face model.
        layers: Module paths. With `whole`, each takes in^2 numbers of 8 bytes.
        batches: The prompts.
        whole: Whether the whole matrix is summed, or its diagonal.

    Returns:
        Moments by module path; none where there are no batches.
    """
    training = model.training
    model.eval()
    try:
        with summed_moments(model, layers, whole) as (found, runs), torch.inference_mode():
            for batch in batches:
                runs(batch)
                model.base_model(**given(batch), use_cache=False)  # the head is after all of them
    finally:
        model.train(training)
    return found
