"""A network in float64 with streamed weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TinyModels
from transformers import AutoModelForCausalLM

from lonas_edge.exporting.float64 import float64_logits
from lonas_edge.network.modeling import empty_model


@pytest.mark.parametrize("case", ["llama", "gemma3-tied", "neox", "phi3", "bloom-tied"])
def test_float64_throughout(case: str, tiny_models: TinyModels, ids: torch.Tensor) -> None:
    """Also norms, which transformers computes in fp32."""
    base = tiny_models.base(case)
    weights = dict(load_file(base / "model.safetensors"))
    model = empty_model(json.loads((base / "config.json").read_text()))
    seen: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    embedding = next(name for name in weights if "embed" in name)
    logits = float64_logits(model, {"input_ids": ids}, lambda name: weights.get(name, weights[embedding]))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)(input_ids=ids, use_cache=False).logits
    assert logits.dtype == torch.float64
    assert (logits - expected).abs().max() < 1e-4
    assert len(seen) >= 2 and not any(torch.equal(output, output.float().double()) for output in seen)
