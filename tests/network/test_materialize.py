"""Materialized checkpoints against the oracle: every family, every kind of sub-network, every dtype."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import TinyModels, TinySource, has_width_field
from transformers import AutoModelForCausalLM

import lonas_edge.network.checkpoints
from lonas_edge import load_checkpoint
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import open_source

EXACT = 1e-5  # float64 logits of order 4, weights rounded to fp32 once: 1e-6


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a materialized checkpoint, computed in float64."""
    with torch.no_grad():
        return load_checkpoint(folder, torch.float64)(input_ids=ids).logits


def expected_logits(source: TinySource, widths: list[int], ids: torch.Tensor) -> torch.Tensor:
    """The oracle's logits."""
    return oracle_logits(source.base, source.adapter, source.space, widths, ids)


def test_every_family(any_source: TinySource, choose: Callable, materialize: Callable, ids: torch.Tensor) -> None:
    widths = choose(any_source, "unequal:0")
    folder = materialize(any_source, widths)
    expected = expected_logits(any_source, widths, ids)
    assert (logits_of(folder, ids) - expected).abs().max() < EXACT
    assert (expected - expected_logits(any_source, choose(any_source, "maximal"), ids)).abs().max() > 0.1


def test_equal_widths_open_with_transformers(any_source: TinySource, choose: Callable, materialize: Callable, ids) -> None:
    widths = choose(any_source, "heuristic")
    folder = materialize(any_source, widths)
    if not has_width_field(any_source.case):
        with pytest.raises(RuntimeError, match="mismatch"):
            AutoModelForCausalLM.from_pretrained(folder)
        return
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        assert (model(input_ids=ids).logits - expected_logits(any_source, widths, ids)).abs().max() < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_rounding(dtype: torch.dtype, tiny_models: TinyModels, choose: Callable, materialize: Callable) -> None:
    """A 16-bit checkpoint is the fp32 one rounded once: a rounding before the merge, or two, would show here."""
    source = tiny_models.source("llama")
    widths = choose(source, "unequal:3")
    exact, rounded = (load_file(materialize(source, widths, kind) / "model.safetensors") for kind in (torch.float32, dtype))
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert rounded[name].dtype == dtype
        assert torch.equal(rounded[name], tensor.to(dtype)), name
    config = json.loads((materialize(source, widths, dtype) / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_sharded_base(tiny_models: TinyModels, choose: Callable, materialize: Callable, ids: torch.Tensor) -> None:
    source = tiny_models.source("llama", sharded=True)
    assert len(list(source.base.glob("*.safetensors"))) > 3
    widths = choose(source, "unequal:4")
    assert (logits_of(materialize(source, widths), ids) - expected_logits(source, widths, ids)).abs().max() < EXACT


def test_sharded_output(llama: TinySource, choose, materialize, ids, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = choose(llama, "heuristic")
    single = load_file(materialize(llama, widths) / "model.safetensors")
    monkeypatch.setattr(lonas_edge.network.checkpoints, "MAX_SHARD_BYTES", 100_000)
    folder = materialize(llama, widths)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {folder / name for name in index["weight_map"].values()} == set(files)
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in single.values())
    sharded = {}
    for path in files:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        sharded |= load_file(path)
    assert sharded.keys() == single.keys() == index["weight_map"].keys()
    assert all(torch.equal(tensor, single[name]) for name, tensor in sharded.items())
    expected = expected_logits(llama, widths, ids)
    assert (logits_of(folder, ids) - expected).abs().max() < EXACT
    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(input_ids=ids).logits
    assert (stock - expected).abs().max() < EXACT


@pytest.mark.parametrize(
    ("mlp", "common", "unequal"),
    [
        ([96, 96, 96], 96, None),  # unequal ranks do not matter
        ([96, 64, 96], 96, {"1": {"intermediate_size": 64}}),
        ([64, 128, 64], 64, {"1": {"intermediate_size": 128}}),
    ],
)
def test_widths_in_the_configuration(llama: TinySource, materialize: Callable, mlp, common, unequal) -> None:
    config = json.loads((materialize(llama, [8, 6, 8, *mlp, 6, 8, 6]) / "config.json").read_text())
    assert config["intermediate_size"] == common
    assert config.get("per_layer_config") == unequal
    assert "_name_or_path" not in config
    before = json.loads((llama.base / "config.json").read_text())
    changed = {"intermediate_size", "per_layer_config", "dtype", "torch_dtype", "_name_or_path"}
    assert {k: v for k, v in config.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}


def test_tied_head_is_not_stored_and_untied_says_so(tiny_models: TinyModels, materialize: Callable) -> None:
    source = tiny_models.source("gemma-tied")
    folder = materialize(source, [8] * 3 + [96] * 3 + [8] * 3)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    adapter = tiny_models.adapter("gemma-tied", modules_to_save=["lm_head"])
    folder = materialize(open_source(str(adapter), str(source.base), source.space), [8] * 3 + [96] * 3 + [8] * 3)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_overflow_of_fp16_is_an_error(tiny_models: TinyModels, materialize: Callable, tmp_path: Path) -> None:
    source = tiny_models.source("llama").copied_to(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(source.base)
    with torch.no_grad():
        model.model.norm.weight[3] = 1e5
    model.save_pretrained(source.base)
    with pytest.raises(LonasEdgeError, match=r"model.norm.weight: overflows fp16(.|\n)*Choose fp32 or bf16"):
        materialize(source, [8] * 3 + [96] * 3 + [8] * 3, torch.float16)
    materialize(source, [8] * 3 + [96] * 3 + [8] * 3, torch.bfloat16)
