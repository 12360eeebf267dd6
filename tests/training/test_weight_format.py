"""Quantization-aware training: loss and gradients against plain torch on the matrices that an export stores."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from stored_model import stored_model
from test_recovery import recover
from tiny_models import TinyModels
from torch import nn
from torch.nn import functional as F
from training_runs import EIGHT, IGNORED, run, write_data

from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer

ALL = {"steps": 1, "batch_size": len(EIGHT), "lr": 1e-9}  # one step on all examples that learns nothing


def batch_of(source: Source, base: Path, data: Path) -> dict[str, torch.Tensor]:
    """The eight examples as one batch."""
    [batch] = read_held_out(source, data, len(EIGHT), 0, "question").batches(load_tokenizer(base))
    return dict(batch)


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens, in plain torch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, batch["logits_to_keep"]]
    return F.cross_entropy(logits[batch["labels"] != IGNORED], batch["labels"][batch["labels"] != IGNORED])


def stored_loss(source: Source, widths: Sequence[int], name: str, batch: dict[str, torch.Tensor]) -> float:
    with torch.inference_mode():
        return loss_of(stored_model(source, widths, name), batch).item()


FORMATS = [("llama-tied", "int8"), ("llama", "int4")]
FORMATS += [(case, "int4_sym") for case in ("llama", "phi3")]
FORMATS += [pytest.param(case, "int4_sym", marks=pytest.mark.slow) for case in ("llama-tied", "gemma2-tied", "bloom-tied")]


@pytest.mark.parametrize(("case", "name"), FORMATS)
def test_the_loss_is_that_of_the_stored_weights(
    case: str, name: str, tiny_models: TinyModels, trained: Callable, tmp_path: Path, choose: Callable
) -> None:
    tiny, start, eight = tiny_models.source(case), trained(case, True), write_data(tmp_path / "eight.json", EIGHT)
    widths = choose(tiny, "unequal:5")
    losses = {
        stored: recover(start, eight, tmp_path / f"out-{stored}", widths, weight_format=stored, **ALL)["losses"][0]["loss"]
        for stored in (name, None)
    }
    source = open_source(str(start))
    expected = stored_loss(source, widths, name, batch_of(source, tiny.base, eight))
    assert losses[name] == pytest.approx(expected, rel=1e-5)
    assert abs(losses[name] - losses[None]) > 3e-4 * expected, "quantization must be visible in the loss"


def test_gradients_pass_through_rounding(tiny_models: TinyModels, tmp_path: Path) -> None:
    """With W' = stored(W + s B A) and G the gradient by W': s Bᵀ G for A, and s G Aᵀ for B."""
    tiny, eight = tiny_models.source("llama"), write_data(tmp_path / "eight.json", EIGHT)
    source, widths = tiny.opened(), [values[0] for values in tiny.groups()]
    batch, network = batch_of(source, tiny.base, eight), load_super_network(source)
    layers = {name: layer for name, layer in network.base.named_modules() if hasattr(layer, "lora_A")}
    for layer in layers.values():
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
    network.activate(widths)
    with StoredWeights(network, "int4_sym").active(widths):
        loss_of(network.model, batch).backward()
    plain = stored_model(source, widths, "int4_sym").requires_grad_(True)
    loss_of(plain, batch).backward()
    assert layers
    for name, layer in layers.items():
        gradient = plain.get_submodule(name).weight.grad
        [(adapter, down)], up = layer.lora_A.items(), layer.lora_B
        scale, up = layer.scaling[adapter], up[adapter]
        torch.testing.assert_close(down.weight.grad, scale * up.weight.T @ gradient, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(up.weight.grad, scale * gradient @ down.weight.T, rtol=1e-3, atol=1e-6)


def test_export_warns_of_another_format(tiny_models: TinyModels, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    run(tiny_models.source("llama"), data, tmp_path / "super", weight_format="int4_sym", steps=1)
    options = ("--weight-format", "int4_sym", "--group-size", -1, "--no-verify")
    ran = run_cli("export", tmp_path / "super", *options, "--output", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "Pass --weight-format int4_sym, without --group-size" in " ".join(ran.err.split())
