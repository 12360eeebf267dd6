"""The network of a draft starts from the model's embedding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinyModels

from lonas_edge.drafting.network import new_draft, principal_components, read_embedding
from lonas_edge.exporting.exported import open_exported


@pytest.mark.parametrize(("weight_format", "tolerance"), [("fp32", 0.0), ("int8", 0.01), ("int4_sym", 0.01)])
def test_the_embedding_of_an_ir(
    weight_format: str, tolerance: float, tiny_models: TinyModels, exports: Callable[..., Path]
) -> None:
    """Weights have a standard deviation of 1/8: the range of a row is about 1, and a step of INT8 less than 0.01."""
    folder = exports("llama", "maximal", weight_format=weight_format, verify=False)
    expected = load_file(tiny_models.base("llama") / "model.safetensors")["model.embed_tokens.weight"]
    assert (read_embedding(folder) - expected).abs().max() <= tolerance


@pytest.mark.parametrize("case", ["qwen2-tied", "gemma3", "bloom", "phi3"])
def test_the_embedding_of_other_families(case: str, tiny_models: TinyModels, exports: Callable[..., Path]) -> None:
    folder = exports(case, "maximal", weight_format="fp32", verify=False)
    tensors = load_file(tiny_models.base(case) / "model.safetensors")
    name = "transformer.word_embeddings.weight" if case == "bloom" else "model.embed_tokens.weight"
    torch.testing.assert_close(read_embedding(folder), tensors[name], rtol=0, atol=0)


def test_principal_components() -> None:
    table = torch.randn(300, 24) @ torch.randn(24, 24)
    found = principal_components(table, 5)
    centered = (table - table.mean(0)).numpy()
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    expected = left[:, :5] * values[:5]
    expected *= 0.1 / expected.std(ddof=1)
    signs = np.sign((expected * found.numpy()).sum(0))
    np.testing.assert_allclose(found.numpy(), expected * signs, atol=1e-4)
    assert principal_components(table, 128).shape == (300, 24)


def test_a_new_draft(exports: Callable[..., Path]) -> None:
    exported = open_exported(exports("llama", "maximal", weight_format="fp32", verify=False))
    first, again, other = new_draft(exported, 1), new_draft(exported, 1), new_draft(exported, 2)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert (first.config.num_hidden_layers, first.config.eos_token_id) == (2, 1)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
