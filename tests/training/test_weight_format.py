"""Quantization-aware training: loss and gradients against plain torch on the matrices that an export stores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from openvino_models import ir_logits
from stored_model import stored_model
from test_recovery import recover
from tiny_models import TinyModels
from torch import nn
from torch.nn import functional as F
from training_runs import EIGHT, IGNORED, run, run_killed, write_data

from lonas_edge.network.source import Source, open_source
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer

ALL = {"steps": 1, "batch_size": len(EIGHT), "lr": 1e-9}  # one step on all examples that learns nothing


def batch_of(source: Source, base: Path, data: Path) -> dict[str, torch.Tensor]:
    """The eight examples as one batch."""
    [batch] = source.open_data(data, "question").batches(load_tokenizer(base), len(EIGHT), 0)
    return dict(batch)


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens, in plain torch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, batch["logits_to_keep"]]
    return F.cross_entropy(logits[batch["labels"] != IGNORED], batch["labels"][batch["labels"] != IGNORED])


FORMATS = [("llama-tied", "int8"), ("llama", "int4"), ("llama", "int4_sym"), ("phi3", "int4_sym")]
FORMATS += [pytest.param(case, "int4_sym", marks=pytest.mark.slow) for case in ("llama-tied", "gemma2-tied", "bloom-tied")]


@pytest.mark.parametrize(("case", "name"), FORMATS)
def test_the_loss_is_that_of_the_stored_weights(
    case: str, name: str, tiny_models: TinyModels, trained: Callable, tmp_path: Path, choose: Callable
) -> None:
    tiny, start, eight = tiny_models.source(case), trained(case, True), write_data(tmp_path / "eight.json", EIGHT)
    widths = choose(tiny, "unequal:5")
    ratio = 1.0 if case == "bloom-tied" else 0.8  # with some layers in INT8, its loss is that of fp32 by chance
    losses = {}
    for stored in (name, None):
        changes = {"ratio": ratio} if stored and stored.startswith("int4") else {}
        record = recover(start, eight, tmp_path / f"out-{stored}", widths, weight_format=stored, **ALL, **changes)
        losses[stored] = record["losses"][0]["loss"]
    source = open_source(str(tmp_path / f"out-{name}"))  # as the start, but with the record of the layers that stay INT8
    with torch.inference_mode():
        expected = loss_of(stored_model(source, widths, name), batch_of(source, tiny.base, eight)).item()
    assert losses[name] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - losses[None]) > 3e-4 * expected, "quantization must be visible"


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


def stored_logits(source: Source, ids: torch.Tensor, weight_format: str) -> torch.Tensor:
    """Logits of the maximal network with which a training computes."""
    network, widths = load_super_network(source), list(source.select("maximal").widths)
    network.activate(widths)
    with torch.inference_mode(), StoredWeights(network, weight_format, source.int8_layers).active(widths):
        return network.model(input_ids=ids).logits


@pytest.mark.parametrize("case", ["llama", pytest.param("llama-tied", marks=pytest.mark.slow)])
def test_the_export_computes_as_the_training(
    case: str, tiny_models: TinyModels, data: Path, tmp_path: Path, run_cli: Callable, ids: torch.Tensor
) -> None:
    """The record names its format, and an export with another warns."""
    record = run(tiny_models.source(case), data, tmp_path / "super", weight_format="int4_sym", steps=3)
    assert record["options"]["weight_format"] == "int4_sym"
    options = "--weight-format int4_sym"
    assert f"export THIS_DIRECTORY --output DIR --subnet heuristic {options}" in (tmp_path / "super/README.md").read_text()
    export = ("export", tmp_path / "super", "--subnet", "maximal", "--output")
    ran = run_cli(*export, tmp_path / "out", *options.split())
    assert ran.code == 0 and "warning" not in ran.err, ran.err
    source, logits = open_source(str(tmp_path / "super")), ir_logits(tmp_path / "out", ids)
    assert (stored_logits(source, ids, "int4_sym") - logits).abs().max() < 1e-3
    assert (stored_logits(source, ids, "int8_sym") - logits).abs().max() > 1e-2
    ran = run_cli(*export, tmp_path / "other", "--weight-format", "int8_sym", "--no-verify")
    assert f"was trained for {options} (quantization-aware)" in " ".join(ran.err.split())
    assert f"Pass {options}, without --group-size" in " ".join(ran.err.split())


def test_the_most_sensitive_layers_stay_int8(tiny_models: TinyModels, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    """Half of the weights at most; the choice is recorded, survives a kill, and is that of the export."""
    tiny, halted = tiny_models.source("llama"), tmp_path / "halted"
    record = run(tiny, data, tmp_path / "super", weight_format="int4_sym", ratio=0.5, steps=4)
    kept = record["int8_layers"]
    linears = tiny.opened().architecture.linears
    sizes = {name: linear.out_features * linear.in_features for name, linear in linears.items() if ".layers." in name}
    assert 0.25 < sum(sizes[name] for name in kept) / sum(sizes.values()) <= 0.5
    for layer in {name.split(".self_attn")[0] for name in kept if "self_attn" in name}:
        chosen = {name.split(".")[-1] for name in kept if name.startswith(f"{layer}.self_attn")} - {"o_proj"}
        assert chosen in (set(), {"q_proj", "k_proj", "v_proj"}), "an IR multiplies them at once"
    assert run(tiny, data, tmp_path / "none", weight_format="int4_sym", ratio=1.0, steps=1)["int8_layers"] == []

    run_killed(tiny, data, halted, at=3, weight_format="int4_sym", ratio=0.5, steps=4, save_steps=2)
    file = halted.with_name("halted.partial") / "int8_layers.json"
    assert json.loads(file.read_text())["layers"] == kept
    file.write_text(json.dumps({"layers": kept[:1]}))
    resumed = run(tiny, data, halted, weight_format="int4_sym", ratio=0.5, steps=4, save_steps=2, resume=True)
    assert resumed["int8_layers"] == kept[:1]

    export = ("export", tmp_path / "super", "--weight-format", "int4_sym", "--subnet", "maximal", "--output")
    ran = run_cli(*export, tmp_path / "ir")
    assert ran.code == 0 and "warning" not in ran.err, ran.err
    manifest = json.loads((tmp_path / "ir/lonas_edge.json").read_text())
    shares = {part["weight_format"]: part["share"] for part in manifest["compression"]}
    assert shares["int8"] == pytest.approx(sum(sizes[name] for name in kept) / sum(sizes.values()), abs=1e-4)
