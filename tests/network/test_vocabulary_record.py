"""Loaded models that are reduced to some tokens."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lonas_edge.network.vocabulary_record import keep_tokens

KEPT = (3, 5, 35, 36)


@pytest.mark.parametrize(("pad", "new"), [(35, 2), (30, None), (None, None)], ids=["kept", "dropped", "none"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_with_a_late_padding_token(pad: int | None, new: int | None, tied: bool) -> None:
    """Its old id is beyond the new embedding; logits are those of the whole model at the kept tokens."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=pad, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        expected = model(torch.tensor([[5, 3, 36, 35]])).logits[..., list(KEPT)]
        small = keep_tokens(model, KEPT)
        actual = small(torch.tensor([[1, 0, 3, 2]])).logits
    assert (actual - expected).abs().max() < 1e-5
    assert (small.config.vocab_size, small.config.pad_token_id) == (4, new)
    embedding = small.get_input_embeddings()
    assert (embedding.num_embeddings, embedding.padding_idx) == (4, new)
