"""The network of a draft: a small LLaMA whose embedding starts from the model's own."""

from pathlib import Path
from typing import Any

import openvino as ov
import torch
from openvino import opset13 as ops
from transformers import LlamaConfig, LlamaForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import Exported
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import openvino_core

_LAYERS, _WIDTH = 2, 128  # docs/benchmarks/draft.md
_HEADS, _WIDENED = 4, 3  # the MLP is three times as wide
_DEVIATION = 0.1  # of the embedding: logits of order 1
_CONTEXT = 4096  # tokens, where the model names no context


def new_draft(exported: Exported, seed: int, layers: int = _LAYERS, width: int = _WIDTH) -> LlamaForCausalLM:
    """Make the untrained draft of a model: random layers between the principal components of its embedding."""
    embedding = principal_components(read_embedding(exported.folder), width)
    vocabulary, width = embedding.shape
    tokens = {name: exported.config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_WIDENED * width,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=exported.context or _CONTEXT,
        tie_word_embeddings=True,
        **tokens,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
    network.model.embed_tokens.weight.data.copy_(embedding)
    return network


def read_embedding(folder: Path) -> torch.Tensor:
    """Read the embedding [tokens, hidden] of an IR, decompressed."""
    model = openvino_core().read_model(folder / MODEL)
    lookups = [node for node in model.get_ordered_ops() if node.get_type_name() == "Gather" and _reads_tokens(node)]
    if not lookups:
        raise LonasEdgeError(f"{folder / MODEL}: no embedding of `input_ids` was found; expected a language model")
    table = ov.Model([ops.result(lookups[0].input_value(0))], [])
    values = openvino_core().compile_model(table, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})[0]
    return torch.from_numpy(values.copy()).float()


def _reads_tokens(lookup: Any) -> bool:
    """Whether a Gather takes rows of a table by the model's token ids."""
    if len(lookup.input_value(0).get_partial_shape()) != 2:
        return False
    node = lookup.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter" and "input_ids" in node.output(0).get_names()


def principal_components(table: torch.Tensor, width: int) -> torch.Tensor:
    """Project a table [rows, columns] on its first principal components: [rows, width], or fewer where it is narrower."""
    width = min(width, table.shape[1])
    centered = table - table.mean(0)
    _, directions = torch.linalg.eigh(centered.T @ centered)  # in ascending order
    components: torch.Tensor = centered @ directions.flip(1)[:, :width]
    components *= _DEVIATION / components.std()
    return components
