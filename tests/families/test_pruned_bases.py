"""Pruned models as bases: checkpoints that we export, with their own heads and MLP widths in each layer and removed blocks.

The reference is LLaMA in plain torch, written from the stored tensors alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino_models import ir_logits
from oracle import cut, llama_logits, merge, read_groups, read_removed, silence
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, tokenizer

from lonas_edge.bench.memory import kv_bytes
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.generate import generate_space

HIDDEN, HEADS, WIDTH = 64, 4, 512  # of the unpruned model
SHAPES = [(2, 256), (None, 512), (1, 256), (4, None)]  # key-value heads and MLP width of each layer
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_hidden_layers": len(SHAPES),
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


@dataclass(frozen=True)
class Pruned:
    base: Path
    data: Path

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.double() for name, tensor in load_file(self.base / "model.safetensors").items()}


@pytest.fixture
def model(tmp_path: Path) -> Pruned:
    """A sub-network with `SHAPES`; query heads go with their key-value heads."""
    base = random_model(tmp_path / "unpruned")
    content = generate_space(
        open_source(str(base)).architecture,
        (1, 0.5, 0.25),
        blocks=["model.layers.1.self_attn", "model.layers.3.mlp"],
        heads=True,
    )
    (tmp_path / "first.json").write_text(json.dumps(content))
    source = open_source(str(base), nncf_config=tmp_path / "first.json")
    chosen = dict(zip(source.elasticity.group_names, (group.widths[0] for group in source.space.groups), strict=True))
    for layer, (heads, width) in enumerate(SHAPES):
        chosen[f"layers.{layer}.self_attn.width"], chosen[f"layers.{layer}.mlp.width"] = 16 * (heads or 4), width or 512
    chosen |= {"layers.1.self_attn": 0, "layers.3.mlp": 0}
    subnetwork = source.subnetwork(list(chosen.values()), "first")
    export(source, subnetwork, tmp_path / "ours", ExportOptions(stage="checkpoint", dtype="fp32"))
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}"} for n in range(8)]))
    return Pruned(tmp_path / "ours", data)


def random_model(base: Path) -> Path:
    """The unpruned model on disk."""
    generator = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(HIDDEN, generator=generator)

    tensors = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "model.norm.weight": norm()}
    tensors["lm_head.weight"] = matrix(VOCAB, HIDDEN)
    for index in range(len(SHAPES)):
        layer = f"model.layers.{index}"
        tensors |= {f"{layer}.self_attn.{name}_proj.weight": matrix(HIDDEN, HIDDEN) for name in "qkvo"}
        tensors |= {f"{layer}.mlp.{name}_proj.weight": matrix(WIDTH, HIDDEN) for name in ("gate", "up")}
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(HIDDEN, WIDTH)
        tensors |= {f"{layer}.{name}.weight": norm() for name in ("input_layernorm", "post_attention_layernorm")}
    base.mkdir()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(CONFIG))
    tokenizer().save_pretrained(base)
    return base


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits.double()


def test_from_inspect_to_export(model: Pruned, ids: torch.Tensor, run_cli: Callable, tmp_path: Path) -> None:
    """The whole model and a smaller sub-network of an adapter on it: in PyTorch, as a checkpoint and as an IR."""
    space, adapter = tmp_path / "space.json", tmp_path / "adapter"
    stored = load_file(model.base / "model.safetensors")
    whole = json.loads(run_cli("inspect", model.base, "--json").out)
    assert whole["unpruned"]["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert (logits_of(load_checkpoint(model.base), ids) - llama_logits(model.weights(), CONFIG, ids)).abs().max() < 1e-4

    made = run_cli("space", "--model", model.base, "--output", space, "--heads", "--depth", "attention,mlp")
    assert made.code == 0, made.err
    train = ["train", "--model", model.base, "--nncf-config", space, "--data", model.data, "--output", adapter, "--steps", "2"]
    trained = run_cli(*train, "--lr", "0.05", "--no-reorder")
    assert trained.code == 0, trained.err
    source = open_source(str(adapter), str(model.base))
    names = source.elasticity.group_names
    assert "layers.2.self_attn.width" not in names  # all its heads share one key-value head
    assert [name for name in names if name.startswith(("layers.1.self_attn", "layers.3.mlp"))] == []

    widths = [group.widths[-1] for group in source.space.groups]
    widths[names.index("layers.2.self_attn")] = 1
    ranks, outputs = read_groups(space, widths)
    weights = model.weights()
    merge(weights, adapter, ranks)
    for layer, width in outputs.items():
        cut(weights, layer, width, {})
    removed = read_removed(space, widths)
    assert removed == ["model.layers.1.mlp", "model.layers.2.mlp"]
    for block in removed:
        silence(weights, block)
    expected = llama_logits(weights, CONFIG, ids)

    network = load_super_network(source)
    network.activate(widths)
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
    subnetwork = source.subnetwork(widths, "smallest")
    export(source, subnetwork, tmp_path / "checkpoint", ExportOptions(stage="checkpoint"))
    assert (logits_of(load_checkpoint(tmp_path / "checkpoint"), ids) - expected).abs().max() < 1e-4
    export(source, subnetwork, tmp_path / "ir", ExportOptions(weight_format="fp32"))
    assert (ir_logits(tmp_path / "ir", ids) - expected).abs().max() < 1e-3

    config = json.loads((tmp_path / "ir/config.json").read_text())
    assert config["removed_blocks"] == ["model.layers.1.self_attn", *removed, "model.layers.3.mlp"]
    assert subnetwork.kv_elements() == 2 * 16 * (1 + 1 + 2)  # half of the first and of the last layer's key-value heads
    assert kv_bytes(config, 1, "u8") == subnetwork.kv_elements()
    picture = run_cli("inspect", adapter, "--model", model.base, "--subnet", "maximal").out.splitlines()
    assert [line.split()[-3::2] for line in picture if line.split()[:1] in (["1"], ["3"])] == [["0", "512"], ["4", "0"]]


@pytest.mark.slow
def test_bench_opens_them_in_pytorch(model: Pruned, run_cli: Callable, tmp_path: Path) -> None:
    """Next to the IR: the adapter on the base, and merged."""
    adapter = tmp_path / "lora"
    train = ["train", "--model", model.base, "--no-elastic", "--data", model.data, "--output", adapter, "--steps", 1]
    assert run_cli(*train).code == 0
    assert run_cli("export", adapter, "--output", tmp_path / "ir", "--no-verify").code == 0
    arms = ["--adapter", adapter, "--arms", "lora,lora-merged,unpruned", "--rounds", 3, "--prompt-len", 8, "--new-tokens", 4]
    ran = run_cli("bench", tmp_path / "ir", *arms, "--json")
    assert ran.code == 0, ran.err
    arms = [variant["name"] for variant in json.loads(ran.out)["variants"]]
    assert {"lora", "lora-merged", "unpruned"} <= set(arms)


def test_compress_refuses_them(model: Pruned, run_cli: Callable, tmp_path: Path) -> None:
    ran = run_cli("compress", model.base, "--data", model.data, "--output", tmp_path / "out")
    assert ran.code == 1 and "its layers are unequal, and optimum-cli" in " ".join(ran.err.split())
