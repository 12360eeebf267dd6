"""The text part of a multimodal Gemma 3, saved as the guide says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import HEADS, HIDDEN, KV_HEADS, MLP, VOCAB
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from lonas_edge import load_checkpoint

TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": 16,
    "vocab_size": VOCAB,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"image_token_index": VOCAB - 1, "boi_token_index": VOCAB - 2, "eoi_token_index": VOCAB - 3}


def test_the_text_part_is_a_model(
    run_cli: Callable, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {**VISION, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4, **TOKENS)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "WHOLE")
    refused = run_cli("inspect", tmp_path / "WHOLE")
    assert refused.code == 1 and "model_type 'gemma3' is not supported" in refused.err
    guide = (Path(__file__).parents[2] / "docs/reference/families.md").read_text()
    (lines,) = re.findall(r"```python\n(from transformers import Gemma3ForCausalLM.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines)
    assert run_cli("inspect", tmp_path / "TEXT").code == 0
    with torch.inference_mode():
        found, expected = (model(input_ids=ids[:, :9] % 200).logits for model in (load_checkpoint(tmp_path / "TEXT"), whole))
    torch.testing.assert_close(found, expected)
