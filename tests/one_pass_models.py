"""Embedding models and classifiers, which give all outputs in one pass: their sub-networks compared with expected outputs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import TinySource

from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import empty_model, set_parameter
from lonas_edge.network.super_network import load_super_network


def check_network(
    source: TinySource,
    widths: Sequence[int],
    inputs: Mapping[str, torch.Tensor],
    expected: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> None:
    """The activated network, and the materialized one: their logits or, with the mask of the texts, their hidden states."""
    opened = source.opened()
    network: Any = load_super_network(opened)
    network.activate(list(widths))
    model = MaterializedModel(opened, source.subnetwork(list(widths), "unequal"))
    stored = empty_model(model.config())
    for name in dict(stored.named_parameters()):
        set_parameter(stored, name, model.tensor(name))

    def check(answer: torch.Tensor) -> None:
        distance = answer - expected
        assert (distance if mask is None else distance * mask[..., None]).abs().max() < 1e-4

    with torch.inference_mode():
        for live in (network.model, stored):
            answer = live(**inputs, use_cache=False)
            check(answer.logits if mask is None else answer.last_hidden_state)
        family, base = opened.architecture.family, network.base
        check(family.logits(base, family.hidden(base, **inputs)))  # as searches compute it


def exported(run_cli: Callable, source: TinySource, widths: Sequence[int], folder: Path) -> Path:
    """Export the sub-network in fp32."""
    chosen = folder / "unequal.json"
    chosen.write_text(json.dumps({"widths": list(widths)}))
    options = ("--subnet", chosen, "--weight-format", "fp32", "--output", folder / "ir")
    run_cli("export", *source.arguments(), *options).ok()
    return folder / "ir"
