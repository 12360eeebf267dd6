"""load_checkpoint: checkpoints of unequal layers in PyTorch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModels, TinySource, layer_paths, mlp_names
from transformers import AutoModelForCausalLM

import lonas_edge
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.modeling import empty_model, float64_logits

UNEQUAL = [8, 6, 8, 96, 64, 128, 6, 8, 6]


def test_is_public() -> None:
    assert "load_checkpoint" in lonas_edge.__all__
    with pytest.raises(AttributeError):
        lonas_edge.nothing_of_that_name  # noqa: B018


def test_layers_have_the_widths_of_the_configuration(any_source: TinySource, materialize: Callable) -> None:
    model = lonas_edge.load_checkpoint(materialize(any_source, UNEQUAL))
    assert not model.training
    names, last = mlp_names(any_source.case)
    hidden = model.config.hidden_size
    for layer, width in zip(model.get_submodule(layer_paths(any_source.case)[0]), UNEQUAL[3:6], strict=True):
        rows = 2 * width if "gate_up_proj" in names else width
        for linear in (getattr(layer.mlp, name) for name in names):
            assert (linear.out_features, *linear.weight.shape) == (rows, rows, hidden)
        narrows = getattr(layer.mlp, last)
        assert (narrows.in_features, *narrows.weight.shape) == (width, hidden, width)
    tied = model.config.tie_word_embeddings
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight.data_ptr() == embedding.weight.data_ptr()) == tied
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("case", ["llama", "gemma3-tied", "qwen2"])
def test_opens_ordinary_checkpoints(case: str, tiny_models: TinyModels, ids: torch.Tensor) -> None:
    base = tiny_models.base(case, sharded=True)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
        assert torch.equal(lonas_edge.load_checkpoint(str(base))(input_ids=ids).logits, expected)


def test_dtype(llama: TinySource, materialize: Callable) -> None:
    folder = materialize(llama, UNEQUAL, torch.bfloat16)
    assert {parameter.dtype for parameter in lonas_edge.load_checkpoint(folder).parameters()} == {torch.bfloat16}
    model = lonas_edge.load_checkpoint(folder, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.dtype == torch.float32


def test_generates(llama: TinySource, materialize: Callable, ids: torch.Tensor) -> None:
    model = lonas_edge.load_checkpoint(materialize(llama, UNEQUAL))
    ids = ids[1:]
    generated = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(ids))
    sequence = ids
    for _ in range(4):
        with torch.no_grad():
            sequence = torch.cat([sequence, model(input_ids=sequence, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generated, sequence)


def test_weights_that_do_not_match_are_listed_together(llama: TinySource, materialize: Callable) -> None:
    folder = materialize(llama, UNEQUAL)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LonasEdgeError) as caught:
        lonas_edge.load_checkpoint(folder)
    assert "model.norm.weight: missing" in str(caught.value)
    assert "model.layers.0.mlp.up_proj.weight: expected [96, 64], found [128, 64]" in str(caught.value)


def test_the_model_is_not_tied_to_its_files(llama: TinySource, materialize: Callable, ids: torch.Tensor) -> None:
    folder = materialize(llama, UNEQUAL)
    model = lonas_edge.load_checkpoint(folder)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_unsupported_family(tmp_path: Path, llama: TinySource, materialize: Callable) -> None:
    folder = materialize(llama, UNEQUAL)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(LonasEdgeError, match="'gpt2' is not supported"):
        lonas_edge.load_checkpoint(folder)


@pytest.mark.parametrize("case", ["llama", "gemma3-tied", "neox", "phi3", "bloom-tied"])
def test_float64_throughout(case: str, tiny_models: TinyModels, ids: torch.Tensor) -> None:
    """Norms, too, which transformers computes in fp32; the logits are those of plain transformers to what fp32 norms leave."""
    base = tiny_models.base(case)
    weights = dict(load_file(base / "model.safetensors"))
    model = empty_model(json.loads((base / "config.json").read_text()))
    seen: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    embedding = next(name for name in weights if "embed" in name)
    found = float64_logits(model, {"input_ids": ids}, lambda name: weights.get(name, weights[embedding]))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)(input_ids=ids, use_cache=False).logits
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-4
    assert len(seen) >= 2 and not any(torch.equal(output, output.float().double()) for output in seen)


def test_float64_leaves_what_is_fetched_alone(llama: TinySource, ids: torch.Tensor) -> None:
    weights = dict(load_file(llama.base / "model.safetensors"))
    dtypes = set()

    def fetch(name: str) -> torch.Tensor:
        dtypes.add(weights[name].double().to(torch.float32).dtype)
        return weights[name]

    float64_logits(empty_model(json.loads((llama.base / "config.json").read_text())), {"input_ids": ids}, fetch)
    assert dtypes == {torch.float32}
