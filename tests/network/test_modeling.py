"""load_checkpoint: checkpoints of unequal layers in PyTorch."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinySource

import lonas_edge
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network import modeling

UNEQUAL = [8, 6, 8, 96, 64, 128, 6, 8, 6]


def test_weights_that_do_not_match_are_listed_together(llama: TinySource, materialize: Callable) -> None:
    folder = materialize(llama, UNEQUAL)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LonasEdgeError) as caught:
        lonas_edge.load_checkpoint(folder)
    assert "model.norm.weight: expected [64], missing" in str(caught.value)
    assert "model.layers.0.mlp.up_proj.weight: expected [96, 64], found [128, 64]" in str(caught.value)


def test_the_model_is_not_tied_to_its_files(llama: TinySource, materialize: Callable, ids: torch.Tensor) -> None:
    folder = materialize(llama, UNEQUAL)
    model = lonas_edge.load_checkpoint(folder)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(("bf16", "dtype"), [(6.3e11, "bf16"), (1.4e11, "fp32"), (0.5e11, "fp32")])
def test_faster_dtype(processor: Callable, bf16: float, dtype: str) -> None:
    processor(1e11, bf16)
    assert modeling.faster_dtype() == dtype
