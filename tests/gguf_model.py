"""Expected logits of a GGUF file, in plain torch and float64. Nothing here imports the package.

Written from `llama.cpp`, `deci.cpp`, `qwen2.cpp` and `qwen3.cpp` in `src/models` of llama.cpp (llama-cpp-python 0.3.36).
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from torch.nn.functional import silu

PAIRED = ("llama", "deci")  # LLAMA_ROPE_TYPE_NORM: adjacent pairs; the others: halves of a head (NEOX)


def fields_of(path: Path) -> dict[str, Any]:
    """Keys and values of a file."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file, dequantized, shapes as PyTorch counts."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        .double()
        .reshape(*reversed(tensor.shape.tolist()))
        for tensor in gguf.GGUFReader(path).tensors
    }


def gguf_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits [prompts, tokens, vocabulary]."""
    fields, tensors = fields_of(path), tensors_of(path)
    arch = fields["general.architecture"]
    count, eps = fields[f"{arch}.block_count"], fields[f"{arch}.attention.layer_norm_rms_epsilon"]

    def per_layer(key: str) -> list[int]:
        value = fields[f"{arch}.{key}"]
        return list(value) if isinstance(value, list) else [value] * count

    heads, groups, widths = (
        per_layer(key) for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    # load_hparams reads the channels of a head only where the first layer has heads
    channels = fields[f"{arch}.attention.key_length"] if heads[0] else 0
    assert fields[f"{arch}.attention.value_length"] == fields[f"{arch}.rope.dimension_count"] == channels

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * tensors[f"{name}.weight"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        """[prompts, heads, tokens, channels]."""
        exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        frequencies = fields[f"{arch}.rope.freq_base"] ** -exponents / tensors.get("rope_freqs.weight", 1.0)
        angles = torch.arange(ids.shape[1])[:, None] * frequencies
        pairs = x.unflatten(-1, (-1, 2)) if arch in PAIRED else x.unflatten(-1, (2, -1)).transpose(-1, -2)
        first, second = pairs.unbind(-1)
        turned = [first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()]
        return torch.stack(turned, -1).flatten(-2) if arch in PAIRED else torch.cat(turned, -1)

    def attention(x: torch.Tensor, blk: str, n: int, n_kv: int) -> torch.Tensor:
        q, k, v = (
            linear(x, f"{blk}.{name}").unflatten(-1, (count, channels)).transpose(1, 2)
            for name, count in (("attn_q", n), ("attn_k", n_kv), ("attn_v", n_kv))
        )
        if f"{blk}.attn_q_norm.weight" in tensors:
            q, k = norm(q, f"{blk}.attn_q_norm"), norm(k, f"{blk}.attn_k_norm")
        k, v = (part.repeat_interleave(n // n_kv, 1) for part in (rotate(k), v))
        scores = rotate(q) @ k.transpose(-1, -2) / channels**0.5
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        return linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{blk}.attn_output")

    x = tensors["token_embd.weight"][ids]
    for index in range(count):
        blk = f"blk.{index}"
        if widths[index] == 0:
            continue  # deci.cpp skips the layer
        if heads[index]:
            x = x + attention(norm(x, f"{blk}.attn_norm"), blk, heads[index], groups[index])
        inner = norm(x, f"{blk}.ffn_norm")
        assert tensors[f"{blk}.ffn_gate.weight"].shape[0] == widths[index]
        x = x + linear(silu(linear(inner, f"{blk}.ffn_gate")) * linear(inner, f"{blk}.ffn_up"), f"{blk}.ffn_down")
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    return norm(x, "output_norm") @ head.T
