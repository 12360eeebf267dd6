"""Pruned models as bases: those with `block_configs`, DeciLM's and Puzzletron's, and our own checkpoints.

The reference is LLaMA in plain torch, written from the block configurations and the stored tensors alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino_genai
import pytest
import torch
from openvino_models import ir_logits
from oracle import cut, llama_logits, merge, read_groups, read_removed, silence
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, tokenizer

from lonas_edge.bench.memory import kv_bytes
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.families.block_configs import in_own_fields
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.complexity import kv_elements
from lonas_edge.space.generate import generate_space

HIDDEN, HEADS = 64, 4
UNUSED = {"window_length": None, "num_sink_tokens": None, "unshifted_sink": False, "sparsify": None}
DECI = [  # as DeciLM writes them: 2/3 ffn_mult hidden, rounded up to a multiple of 256
    {"attention": {"no_op": False, "n_heads_in_group": 2, **UNUSED}, "ffn": {"no_op": False, "ffn_mult": 5.25}},
    {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 6.5}},
    {"attention": {"no_op": False, "n_heads_in_group": 4}, "ffn": {"no_op": False, "ffn_mult": 5.25}},
    {"attention": {"no_op": False, "n_heads_in_group": 1}, "ffn": {"no_op": True, "ffn_mult": None}},
]
PUZZLE = [  # as newer versions of Puzzletron do
    {"attention": {"no_op": False, "num_key_value_heads": 2, "mamba": None}, "ffn": {"no_op": False, "intermediate_size": 256}},
    {"attention": {"no_op": True}, "ffn": {"no_op": False, "intermediate_size": 512, "moe": None}},
    {"attention": {"no_op": False, "num_key_value_heads": 1}, "ffn": {"no_op": False, "intermediate_size": 256}},
    {"attention": {"no_op": False, "num_key_value_heads": 4}, "ffn": {"no_op": True, "weights_precision": "bf16"}},
]
SHAPES = [(2, 256), (None, 512), (1, 256), (4, None)]  # of all: key-value heads and MLP width of each layer
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
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
CONFIGS: dict[str, dict[str, Any]] = {
    "deci": {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"},
        "hidden_act": "silu",
        "intermediate_size": None,
        "num_key_value_heads": None,
        "block_configs": DECI,
        **COMMON,
    },
    "puzzle": {
        "model_type": "llama",
        "architectures": ["AnyModel"],
        "base_architecture": "LlamaForCausalLM",
        "hidden_act": "silu",
        "intermediate_size": 512,
        "num_key_value_heads": 4,
        "block_configs": PUZZLE,
        **COMMON,
    },
    "unpruned": {"model_type": "llama", "intermediate_size": 512, "num_key_value_heads": 4, **COMMON},
}


@dataclass(frozen=True)
class Pruned:
    base: Path
    data: Path

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.double() for name, tensor in load_file(self.base / "model.safetensors").items()}


def pruned(kind: str, folder: Path) -> Pruned:
    """A pruned model on disk: a checkpoint that we export, or a random model with `block_configs`."""
    return exported(folder) if kind == "checkpoint" else random_model(kind, SHAPES, folder)


def exported(folder: Path) -> Pruned:
    """A sub-network with these shapes; query heads go with their key-value heads."""
    whole, blocks = random_model("unpruned", [(4, 512)] * 4, folder), ["model.layers.1.self_attn", "model.layers.3.mlp"]
    content = generate_space(open_source(str(whole.base)).architecture, (1, 0.5, 0.25), blocks=blocks, heads=True)
    (folder / "first.json").write_text(json.dumps(content))
    source = open_source(str(whole.base), nncf_config=folder / "first.json")
    chosen = dict(zip(source.elasticity.group_names, (group.widths[0] for group in source.space.groups), strict=True))
    for layer, (heads, width) in enumerate(SHAPES):
        chosen[f"layers.{layer}.self_attn.width"], chosen[f"layers.{layer}.mlp.width"] = 16 * (heads or 4), width or 512
    chosen |= {"layers.1.self_attn": 0, "layers.3.mlp": 0}
    subnetwork = source.subnetwork(list(chosen.values()), "first")
    export(source, subnetwork, folder / "ours", ExportOptions(stage="checkpoint", dtype="fp32"))
    return Pruned(folder / "ours", whole.data)


def random_model(kind: str, shapes: list[tuple[int | None, int | None]], folder: Path) -> Pruned:
    """A random model on disk, with the tensors of the blocks that it has."""
    generator = torch.Generator().manual_seed(5)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    def norm() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(HIDDEN, generator=generator)

    tensors = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "model.norm.weight": norm()}
    tensors["lm_head.weight"] = matrix(VOCAB, HIDDEN)
    for index, (heads, width) in enumerate(shapes):
        layer = f"model.layers.{index}"
        if heads:
            for name, rows in {"q": HIDDEN, "k": heads * 16, "v": heads * 16, "o": HIDDEN}.items():
                tensors[f"{layer}.self_attn.{name}_proj.weight"] = matrix(rows, HIDDEN)
            tensors[f"{layer}.input_layernorm.weight"] = norm()
        if width:
            tensors |= {f"{layer}.mlp.{name}_proj.weight": matrix(width, HIDDEN) for name in ("gate", "up")}
            tensors[f"{layer}.mlp.down_proj.weight"] = matrix(HIDDEN, width)
            tensors[f"{layer}.post_attention_layernorm.weight"] = norm()
    base = folder / kind
    base.mkdir()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(CONFIGS[kind]))
    tokenizer().save_pretrained(base)
    data = folder / "data.json"
    data.write_text(json.dumps([{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}"} for n in range(8)]))
    return Pruned(base, data)


@pytest.fixture(params=["deci", "checkpoint", pytest.param("puzzle", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Pruned:
    return pruned(request.param, tmp_path)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits.double()


def test_from_inspect_to_export(model: Pruned, ids: torch.Tensor, run_cli: Callable, tmp_path: Path) -> None:
    """The whole model and a smaller sub-network of an adapter on it: in PyTorch, as a checkpoint and as an IR."""
    space, adapter = tmp_path / "space.json", tmp_path / "adapter"
    stored = load_file(model.base / "model.safetensors")
    whole = json.loads(run_cli("inspect", model.base, "--json").out)
    assert whole["unpruned"]["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert (logits_of(load_checkpoint(model.base), ids) - llama_logits(model.weights(), COMMON, ids)).abs().max() < 1e-4

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
    expected = llama_logits(weights, COMMON, ids)

    network = load_super_network(source)
    network.activate(widths)
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
    subnetwork = source.subnetwork(widths, "smallest")
    export(source, subnetwork, tmp_path / "checkpoint", ExportOptions(stage="checkpoint"))
    assert (logits_of(load_checkpoint(tmp_path / "checkpoint"), ids) - expected).abs().max() < 1e-4
    export(source, subnetwork, tmp_path / "ir", ExportOptions(weight_format="fp32"))
    assert (ir_logits(tmp_path / "ir", ids) - expected).abs().max() < 1e-3

    config = json.loads((tmp_path / "ir/config.json").read_text())
    assert config["model_type"] == "llama"
    assert not {"block_configs", "auto_map", "base_architecture"} & config.keys()
    assert config["removed_blocks"] == ["model.layers.1.self_attn", *removed, "model.layers.3.mlp"]
    assert kv_elements(subnetwork) == 2 * 16 * (1 + 1 + 2)  # half of the first and of the last layer's key-value heads
    assert kv_bytes(config, 1, "u8") == kv_elements(subnetwork)
    picture = run_cli("inspect", adapter, "--model", model.base, "--subnet", "maximal").out.splitlines()
    assert [line.split()[-3::2] for line in picture if line.split()[:1] in (["1"], ["3"])] == [["0", "512"], ["4", "0"]]


@pytest.mark.slow
def test_generates_in_openvino_genai(model: Pruned, tmp_path: Path) -> None:
    """The base alone: greedy tokens are those of the reference, which has no cache."""
    source = open_source(str(model.base))
    export(source, source.select(), tmp_path / "out", ExportOptions(weight_format="fp32"))
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    text, weights = "there is another one", model.weights()
    expected = torch.tensor([tokenizer()(text).input_ids])
    for _ in range(12):
        expected = torch.cat([expected, llama_logits(weights, COMMON, expected)[:, -1:].argmax(-1)], dim=1)
    config = openvino_genai.GenerationConfig(ignore_eos=True, max_new_tokens=12)
    pipeline = openvino_genai.LLMPipeline(str(tmp_path / "out"), "CPU", **exact)
    found = pipeline.generate(pipeline.get_tokenizer().encode(text), config).tokens[0]
    assert found == expected[0, -12:].tolist()


def changed(index: int, part: str, **fields: Any) -> list[dict[str, Any]]:
    blocks = json.loads(json.dumps(DECI))
    blocks[index][part] |= fields
    return blocks


LINEAR = {"replace_with_linear": True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_configs": changed(0, "attention", **LINEAR)}, "layer 0: attention.replace_with_linear True: not supported"),
        ({"block_configs": changed(2, "ffn", **LINEAR)}, "layer 2: ffn.replace_with_linear True: not supported"),
        ({"block_configs": changed(0, "attention", window_length=4)}, "layer 0: attention.window_length 4: not supported"),
        ({"block_configs": changed(1, "ffn", moe={"num_local_experts": 8})}, r"layer 1: ffn.moe \{.*: not supported"),
        (
            {"block_configs": changed(0, "attention", n_heads_in_group=3)},
            "layer 0: attention: .* divides 4 query heads, found 3",
        ),
        ({"block_configs": changed(0, "attention", n_heads_in_group=None)}, "layer 0: attention: expected n_heads_in_group"),
        ({"block_configs": changed(0, "attention", num_key_value_heads=4)}, "layer 0: attention: .* contradict each other"),
        ({"block_configs": changed(0, "ffn", ffn_mult=None)}, "layer 0: ffn: expected ffn_mult or intermediate_size"),
        ({"block_configs": changed(0, "ffn", ffn_mult="wide")}, "block_configs.0.ffn.ffn_mult: .*number.*found 'wide'"),
        ({"block_configs": changed(0, "ffn", ffn_mult=1e308)}, "block_configs.0.ffn.ffn_mult: .*1000"),
        ({"hidden_act": ["silu"]}, "hidden_act: .*string"),
        ({"block_configs": changed(0, "ffn", gated=False)}, "layer 0: ffn.gated False: not supported"),
        ({"block_configs": changed(0, "ffn", hidden_act="gelu")}, "hidden_act: expected one for all layers, found gelu, silu"),
        ({"block_configs": [{**DECI[0], "parallel_blocks": [DECI[1]]}, *DECI[1:]]}, "layer 0: parallel_blocks: not supported"),
        ({"block_configs": DECI[:3]}, "3 entries; num_hidden_layers is 4"),
        ({"block_configs": [DECI[1]] * 4}, "every layer's attention is removed"),
        ({"position_embedding_type": "rope_llama4"}, "position_embedding_type 'rope_llama4': expected 'rope'"),
        ({"o_proj_bias": True}, "o_proj_bias differs from attention_bias"),
        ({"model_type": "gpt_oss"}, "of model_type 'gpt_oss': expected one of llama, mistral"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LonasEdgeError, match=f"(?s)here: block_configs .*{message}"):
        in_own_fields({**CONFIGS["deci"], **fields}, "here")


def test_a_field_of_the_name_layer_type() -> None:
    plain = in_own_fields(CONFIGS["deci"], "here")
    assert in_own_fields({**CONFIGS["deci"], "layer_type": "x"}, "here") == {**plain, "layer_type": "x"}


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


def test_errors_name_the_file(tmp_path: Path) -> None:
    base = pruned("deci", tmp_path).base
    (base / "config.json").write_text(json.dumps({**CONFIGS["deci"], "block_configs": DECI[:3]}))
    with pytest.raises(LonasEdgeError, match=r"config.json: block_configs cannot be used"):
        open_source(str(base))
