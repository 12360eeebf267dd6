"""The oracle: expected logits of a sub-network, in plain torch and float64, written from the definition of LoNAS.

It does not import the package. The Hugging Face model keeps its full size: adapters are merged with their first r ranks, at the
scale of the full rank, and channels beyond a width are set to zero. For an MLP, act(gate) * up or act(up), this equals their
removal, since act(0) is 0; Gemma 3n's MLPs lose them, since sparse ones are cut at a mean over channels. The last layer of a
removed block is zero, so that the block adds nothing to the residual.

`bloom_logits` defines BLOOM's forward pass, too: ALiBi and the fused q, k, v do not depend on transformers. `llama_logits`
defines LLaMA's, with unequal layers.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

# Index i of the order holds that channel of the base. The file is next to the adapter; else the search space may have an order.
ORDER = "channel_order.safetensors"
_CONSUMER = {"gate_proj": "down_proj", "up_proj": "down_proj", "gate_up_proj": "down_proj", "dense_h_to_4h": "dense_4h_to_h"}
_CONSUMER |= {"input_linear": "output_linear"}
_READS_HEADS = {"q_proj": "o_proj", "k_proj": "o_proj", "v_proj": "o_proj", "qkv_proj": "o_proj", "query_key_value": "dense"}
_ENDINGS = ("self_linear", "lora_A", "lora_B")  # of a node name's bracketed parts, after the layer's own


def oracle_logits(base: Path, adapter: Path | None, space: Path | None, widths: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Logits [prompts, tokens, vocabulary], float64, of the sub-network with these `widths`, in group order."""
    model = oracle_model(AutoModelForCausalLM, base, adapter, space, widths)
    with torch.no_grad():
        if model.config.model_type == "bloom":
            return bloom_logits(dict(model.named_parameters()), model.config, ids)
        return model(input_ids=ids, use_cache=model.config.model_type == "gemma3n_text").logits


def oracle_model(
    auto: Any, base: Path, adapter: Path | None, space: Path | None, widths: list[int], **fields: Any
) -> PreTrainedModel:
    """The sub-network with these `widths` as a whole model of a class of transformers, float64; `fields` are of its config."""
    model = auto.from_pretrained(base, dtype=torch.float64, **fields).eval()
    weights = dict(model.named_parameters())
    ranks, outputs = read_groups(space, widths) if space else ({}, {})
    order = load_file(adapter / ORDER) if adapter and (adapter / ORDER).exists() else order_of_space(space)
    with torch.no_grad():
        if adapter:
            merge(weights, adapter, ranks)
        shares = model.config.model_type == "gemma3n_text"  # keys and values, by its cache
        for layer, width in outputs.items():
            (drop if shares else cut)(weights, layer, width, order)
        for block in read_removed(space, widths) if space else []:
            silence(weights, block)
    return model


def order_of_space(space: Path | None) -> dict[str, torch.Tensor]:
    """The order of channels in our section of a search space."""
    section = json.loads(space.read_text())["bootstrapNAS"]["training"]["elasticity"].get("lonas_edge", {}) if space else {}
    return {name: torch.tensor(list(map(int, text.split()))) for name, text in section.get("channel_order", {}).items()}


def bloom_logits(weights: dict[str, Any], config: Any, ids: torch.Tensor) -> torch.Tensor:
    """BLOOM (Le Scao et al. 2022), for a number of heads that is a power of two.

    ALiBi (Press et al. 2022): head i of n, counted from 1, adds -2^(-8i/n) for each token of distance to its scores.
    `query_key_value` gives [heads, 3, head_dim].
    """
    heads, tokens = config.n_head, ids.shape[1]
    assert heads & (heads - 1) == 0

    def affine(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)  # [query, key]
    bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -torch.inf)
    x = norm(weights["transformer.word_embeddings.weight"][ids], "transformer.word_embeddings_layernorm")
    for index in range(config.n_layer):
        layer = f"transformer.h.{index}"
        fused = affine(norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attention.query_key_value")
        q, k, v = fused.view(*ids.shape, heads, 3, -1).permute(3, 0, 2, 1, 4)  # each [prompts, heads, tokens, head_dim]
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
        x = x + affine((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{layer}.self_attention.dense")
        inner = affine(norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.dense_h_to_4h")
        gelu = inner / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
        x = x + affine(gelu, f"{layer}.mlp.dense_4h_to_h")
    head = weights.get("lm_head.weight", weights["transformer.word_embeddings.weight"])
    return norm(x, "transformer.ln_f") @ head.T


def llama_logits(weights: dict[str, torch.Tensor], config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """LLaMA (Touvron et al. 2023) with rotary positions, grouped key-value heads and SwiGLU; layers may be unequal.

    Blocks without weights add nothing; numbers of heads and widths of MLPs are those of the weights.
    """
    prompts, tokens = ids.shape
    size = config["hidden_size"] // config["num_attention_heads"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weights[f"{name}.weight"]

    angles = torch.arange(tokens)[:, None] * config["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    turn = torch.polar(torch.ones_like(angles), angles)  # [tokens, size / 2]

    def rotated(x: torch.Tensor) -> torch.Tensor:  # [..., tokens, size]: channel i is paired with channel i + size / 2
        turned = torch.complex(*x.chunk(2, -1)) * turn
        return torch.cat([turned.real, turned.imag], -1)

    def split(x: torch.Tensor, name: str) -> torch.Tensor:  # [prompts, heads, tokens, size]
        return (x @ weights[f"{name}.weight"].T).view(prompts, tokens, -1, size).transpose(1, 2)

    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    x = weights["model.embed_tokens.weight"][ids]
    for layer in (f"model.layers.{index}" for index in range(config["num_hidden_layers"])):
        if f"{layer}.self_attn.q_proj.weight" in weights:
            inner = norm(x, f"{layer}.input_layernorm")
            q, k, v = (split(inner, f"{layer}.self_attn.{name}_proj") for name in "qkv")
            k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
            scores = (rotated(q) @ rotated(k).transpose(-1, -2) / size**0.5).masked_fill(future, -torch.inf)
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + mixed @ weights[f"{layer}.self_attn.o_proj.weight"].T
        if f"{layer}.mlp.down_proj.weight" in weights:
            inner = norm(x, f"{layer}.post_attention_layernorm")
            gate, up = (inner @ weights[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (gate * gate.sigmoid() * up) @ weights[f"{layer}.mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ weights["lm_head.weight"].T


def read_groups(space: Path, widths: list[int]) -> tuple[dict[str, int], dict[str, int]]:
    """The rank of each adapter and the output width of each layer that the search space names, by module path."""
    elastic = json.loads(space.read_text())["bootstrapNAS"]["training"]["elasticity"]["width"]
    ranks, outputs = {}, {}
    groups = elastic["overwrite_groups"]
    for nodes, allowed, width in zip(groups, elastic["overwrite_groups_widths"], widths[: len(groups)], strict=True):
        assert width in allowed
        for node in nodes:
            parts = re.findall(r"\[(\w+)\]", node)[2:]  # without base_model and model
            end = next((index for index, part in enumerate(parts) if part in _ENDINGS), len(parts))  # none without an adapter
            target = ranks if parts[end:][:1] == ["lora_A"] else outputs
            target[".".join(parts[:end])] = width
    return ranks, outputs


def read_removed(space: Path, widths: list[int]) -> list[str]:
    """The removed blocks, those whose group has width 0; their groups follow the groups of widths and ranks."""
    elasticity = json.loads(space.read_text())["bootstrapNAS"]["training"]["elasticity"]
    groups, before = elasticity.get("lonas_edge", {}).get("blocks", []), len(elasticity["width"]["overwrite_groups"])
    return [block for group, width in zip(groups, widths[before:], strict=True) if width == 0 for block in group]


def silence(weights: dict[str, Any], block: str) -> None:
    """Zero the layer of a block that writes into the residual."""
    (last,) = (
        name
        for name in ("o_proj", "dense", "down_proj", "dense_4h_to_h", "output_linear", "out_proj")
        if f"{block}.{name}.weight" in weights
    )
    for leaf in ("weight", "bias"):
        if f"{block}.{last}.{leaf}" in weights:
            weights[f"{block}.{last}.{leaf}"].zero_()


def merge(weights: dict[str, Any], adapter: Path, ranks: dict[str, int]) -> None:
    """W += alpha / R * B[:, :r] A[:r], R the rank of the training."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert not config["alpha_pattern"] and not config["use_rslora"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    for key, a in tensors.items():
        name = key.removeprefix("base_model.model.")
        if name.endswith(".bias") and ".lora_B." not in name:  # trained in place
            weights[name.replace(".base_layer.", ".")].copy_(a)
        if name in weights:  # a head
            weights[name].copy_(a)
        if ".lora_A." not in key:
            continue
        layer = name.removesuffix(".lora_A.weight")
        b, rank, scale = tensors[key.replace(".lora_A.", ".lora_B.")], ranks.get(layer, len(a)), config["lora_alpha"] / len(a)
        weights[f"{layer}.weight"] += scale * b[:, :rank].double() @ a[:rank].double()
        if (bias := tensors.get(key.replace(".lora_A.weight", ".lora_B.bias"))) is not None:
            weights[f"{layer}.bias"] += scale * bias.double()


def drop(weights: dict[str, Any], layer: str, width: int, order: dict[str, torch.Tensor]) -> None:
    """Remove the channels of a layer beyond `width` in the channel order, and the columns of the layer that reads them."""
    path, _, name = layer.rpartition(".")
    consumer, matrix = f"{path}.{_CONSUMER[name]}", weights[f"{layer}.weight"]
    channels = order.get(consumer, torch.arange(len(matrix)))[:width]
    matrix.data = matrix[channels]
    if name == "up_proj":  # which has one reader with the gate
        weights[f"{consumer}.weight"].data = weights[f"{consumer}.weight"][:, channels]


def cut(weights: dict[str, Any], layer: str, width: int, order: dict[str, torch.Tensor]) -> None:
    """Zero the channels of a layer beyond `width` in the channel order, and the columns of the layer that reads them."""
    path, _, name = layer.rpartition(".")
    if name in _READS_HEADS:  # heads are independent up to the layer that reads them
        reader = f"{path}.{_READS_HEADS[name]}"
        full = weights[f"{reader}.weight"].shape[1]
        weights[f"{reader}.weight"][:, order.get(reader, torch.arange(full))[width:]] = 0
        return
    consumer = f"{path}.{_CONSUMER[name]}"
    full = weights[f"{consumer}.weight"].shape[1]
    channels = order.get(consumer, torch.arange(full))[width:]
    rows = torch.cat([channels, full + channels]) if name in ("gate_up_proj", "input_linear") else channels  # [gate; up]
    weights[f"{layer}.weight"][rows] = 0
    if f"{layer}.bias" in weights:
        weights[f"{layer}.bias"][rows] = 0
    weights[f"{consumer}.weight"][:, channels] = 0
