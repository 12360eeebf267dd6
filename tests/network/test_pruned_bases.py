"""Our own checkpoints as bases: layers of unequal widths and removed blocks.

Pruning a materialized network further is pruning the original at once, so the oracle has the original's weights.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from openvino_models import ir_logits
from oracle import llama_logits, merge
from safetensors.torch import load_file
from structured import assert_as_defined
from tiny_bert import TinyBert, expected_of, outputs_of
from tiny_models import CASES, TinyModels, TinySource, block_path, families, has_heads, removable_blocks, tokenizer

from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.generate import generate_space

UNTIED = [case for case in CASES if not case.endswith("-tied")]
RANKS, MLPS, NARROWER = [8, 6, 8], [96, 64, 128], [48, 32, 64]  # of three layers


def halved(base: Path, space: Path, blocks: list[str], heads: bool) -> tuple[Source, list[int]]:
    """A checkpoint with a search space of halved widths, and its widths with the smallest MLPs and heads."""
    content = generate_space(
        open_source(str(base)).architecture, (1, 0.5), RANKS[:2], blocks=[[block] for block in blocks], heads=heads
    )
    space.write_text(json.dumps(content))
    opened = open_source(str(base), nncf_config=space)
    return opened, [group.widths[0 if group.kind == "rank" else -1] for group in opened.space.groups]


def with_choices(tiny: TinySource, path: Path, widths: list[int]) -> TinySource:
    """The same source, whose search space has these widths, too."""
    content = json.loads(tiny.space.read_text())
    values = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    for group, width in zip(values, widths, strict=True):
        group.append(width)
    path.write_text(json.dumps(content))
    return replace(tiny, space=path)


@pytest.mark.parametrize("case", families(*UNTIED))
def test_pruned_again(case: str, tiny_models: TinyModels, ids: torch.Tensor, materialize: Callable, tmp_path: Path) -> None:
    """First the first layer's attention is removed, then another MLP."""
    elastic = has_heads(case)
    tiny = tiny_models.heads_source(case) if elastic else tiny_models.deep_source(case)
    heads, fewer = [], []
    if elastic:  # half of the heads share one key-value head, or are two with their own keys and values
        most, half = tiny.groups()[9][0], tiny.groups()[9][-1]
        heads, fewer = [most, most, half], [most, half, half // (1 if "num_key_value_heads" in CASES[case] else 2)]
    base = materialize(tiny, [*RANKS, *MLPS, *RANKS, *heads, 0, 1, 1])
    config = json.loads((base / "config.json").read_text())
    assert config["removed_blocks"] == [block_path(case, 0, "attention")]
    assert config.get("per_layer_config") or isinstance(config["intermediate_size"], list)  # Gemma 3n lists the widths
    _, (attention, _), (mlp,) = removable_blocks(case)
    blocks = [block_path(case, *attention), block_path(case, *mlp)]
    again, chosen = halved(base, tmp_path / "again.json", blocks, elastic)
    chosen[-2:] = [1, 0]
    widths = [*RANKS, *NARROWER, *RANKS, *fewer]
    whole, network = with_choices(tiny, tmp_path / "whole.json", widths), load_super_network(again)
    assert_as_defined(whole, tiny.adapter, network, materialize(again, chosen), [*widths, 0, 1, 0], ids, chosen)


@pytest.mark.parametrize("task", ["classifier", "embedder"])
def test_an_encoder_pruned_again(task: str, tiny_bert: TinyBert, materialize: Callable, tmp_path: Path) -> None:
    """Heads and MLPs; then the layer in the middle, after which the last one is the second."""
    tiny = tiny_bert.deep(tiny_bert.source(3) if task == "classifier" else tiny_bert.embedder(), 1)
    ranks, heads, fewer = RANKS, [64, 64, 32], [32, 32, 16]
    base = materialize(tiny, [*heads, *ranks, *MLPS, 1])
    if task == "embedder":
        shutil.copyfile(tiny.base / "modules.json", base / "modules.json")
        shutil.copytree(tiny.base / "1_Pooling", base / "1_Pooling")
    assert json.loads((base / "config.json").read_text())["per_layer_config"]
    again, chosen = halved(
        base, tmp_path / "again.json", ["bert.encoder.layer.1" if task == "classifier" else "encoder.layer.1"], False
    )
    widths = [*fewer, *ranks, *NARROWER]
    expected = expected_of(task, with_choices(tiny, tmp_path / "whole.json", widths), [*widths, 0])
    network = load_super_network(again)
    network.activate(chosen)
    for model in (network.model, load_checkpoint(materialize(again, chosen))):
        torch.testing.assert_close(outputs_of(task, model).double(), expected, rtol=0, atol=1e-4)


def test_training_and_export(
    tiny_models: TinyModels, run_cli: Callable, materialize: Callable, ids: torch.Tensor, tmp_path: Path
) -> None:
    """A LoRA on a base with fewer heads, narrower MLPs and a removed attention, as an IR; `compress` refuses such a base."""
    base, lora, data = (
        materialize(tiny_models.heads_source("llama"), [*RANKS, *MLPS, *RANKS, 64, 32, 64, 0, 1, 1]),
        tmp_path / "lora",
        tmp_path / "data.json",
    )
    tokenizer().save_pretrained(base)
    data.write_text(json.dumps([{"instruction": f"What is {n} plus {n}?", "output": f"It is {2 * n}"} for n in range(64)]))
    train = ("train", "--model", base, "--no-elastic", "--data", data, "--output", lora, "--steps", 2, "--lr", 0.05)
    for command in (train, ("export", lora, "--output", tmp_path / "ir", "--weight-format", "fp32")):
        ran = run_cli(*command).ok()
    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    merge(weights, lora, {})
    settings = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, **CASES["llama"]}
    assert (ir_logits(tmp_path / "ir", ids) - llama_logits(weights, settings, ids)).abs().max() < 1e-3
    ran = run_cli("compress", base, "--data", data, "--output", tmp_path / "out")
    assert ran.code == 1 and "its layers are unequal, and optimum-cli" in " ".join(ran.err.split())
