"""Comparisons of activated and materialized networks with the definition, and of generation with and without a cache."""

from collections.abc import Callable
from pathlib import Path

import torch
from oracle import oracle_logits
from tiny_models import TinySource

from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import Source
from lonas_edge.network.super_network import SuperNetwork


def assert_as_defined(
    tiny: TinySource,
    adapter: Path,
    network: SuperNetwork,
    checkpoint: Path,
    widths: list[int],
    ids: torch.Tensor,
    chosen: list[int] | None = None,
) -> None:
    """The activated network and the checkpoint of the same widths have the oracle's logits.

    `chosen` are the network's widths where its base is smaller than the oracle's.
    """
    expected = oracle_logits(tiny.base, adapter, tiny.space, widths, ids)
    network.activate(chosen or widths)
    for model in (network.model, load_checkpoint(checkpoint)):
        with torch.inference_mode():
            torch.testing.assert_close(model(input_ids=ids).logits.double(), expected, rtol=0, atol=1e-4)


def assert_generates_alike(
    source: Source, network: SuperNetwork, materialize: Callable[..., Path], widths: list[int], ids: torch.Tensor
) -> torch.Tensor:
    """Activated and materialized, with a cache and without one, two beams: the same tokens, which are returned.

    Prompts of unequal length in one batch and alone: a mask is of the caches' length only where there is padding.
    """
    network.activate(widths)
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "num_beams": 2}
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    models = (network.base, load_checkpoint(materialize(source, widths)))
    for attended in (mask, torch.ones_like(ids)):
        inputs = {"input_ids": ids, "attention_mask": attended}
        tokens = [model.generate(**inputs, use_cache=cached, **settings) for model in models for cached in (True, False)]
        assert all(torch.equal(each, tokens[0]) for each in tokens)
    return tokens[0]
