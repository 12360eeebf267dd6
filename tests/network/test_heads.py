"""Elastic heads, alone and with everything else, against the definition: activated and materialized, reordered or not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from structured import assert_as_defined, assert_generates_alike
from tiny_models import CASES, LAYERS, TinyModels, TinySource, families, has_heads
from transformers import AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.channel_order import by_importance
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network

CUTS = [  # of 12 groups of ranks, MLPs, ranks and heads, and 3 of blocks: heads (1: all, 0: half of them) and blocks
    ((0, 0, 0), (1, 1, 1)),
    ((0, 1, 0), (1, 1, 1)),
    ((1, 0, 0), (0, 1, 0)),
    ((0, 1, 0), (1, 0, 1)),
]


def widths_of(source: TinySource, heads: tuple[int, ...], depth: tuple[int, ...], unequal: bool = True) -> list[int]:
    """Heads and blocks as given; ranks and MLPs unequal, or the widest."""
    groups = source.groups()
    widths = [group[(index + 1) % len(group) if unequal else 0] for index, group in enumerate(groups[:9])]
    return widths + [groups[9 + layer][0 if kept else -1] for layer, kept in enumerate(heads)] + list(depth)


@pytest.mark.parametrize("case", families(*filter(has_heads, CASES)))
def test_logits_equal_the_oracle(
    case: str, tiny_models: TinyModels, ids: torch.Tensor, materialize: Callable[..., Path], tmp_path: Path
) -> None:
    """With heads and MLP channels in a random order."""
    tiny = tiny_models.heads_source(case)
    adapter = tiny.ordered(tmp_path / "ordered").adapter
    source = open_source(str(adapter), str(tiny.base), tiny.space)
    network = load_super_network(source)
    for number, (heads, depth) in enumerate(CUTS):
        widths = widths_of(tiny, heads, depth, unequal=number > 0)
        assert_as_defined(tiny, adapter, network, materialize(source, widths), widths, ids)


@pytest.mark.parametrize("case", families("llama", "gemma2", "gemma3", "neox", "phi3", "qwen3", "smollm3"))
def test_generates_as_without_a_cache(
    case: str, tiny_models: TinyModels, ids: torch.Tensor, materialize: Callable[..., Path]
) -> None:
    tiny = tiny_models.heads_source(case)
    widths = widths_of(tiny, (0, 1, 0), (1, 0, 1))
    assert_generates_alike(tiny.opened(), load_super_network(tiny.opened()), materialize, widths, ids)


def test_widths_that_split_heads(tiny_models: TinyModels, tmp_path: Path) -> None:
    tiny = tiny_models.heads_source("phi3")
    content = json.loads(tiny.space.read_text())
    values = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    values[9], values[10] = [64, 24], [64, 40, 32]
    (tmp_path / "space.json").write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError) as raised:
        open_source(str(tiny.adapter), str(tiny.base), tmp_path / "space.json")
    for group, layer, width in ((9, 0, 24), (10, 1, 40)):
        expected = "heads of 16 channels, 2 per key-value head: expected multiples of 32"
        assert f"group {group}: width {width} of model.layers.{layer}.self_attn.qkv_proj splits {expected}" in str(raised.value)


def test_heads_are_ordered_by_importance(tiny_models: TinyModels) -> None:
    """Root of the summed squares of RMS of the input times the column's norm, over the heads of a key-value head."""
    tiny = tiny_models.heads_source("llama")
    source = tiny.opened()
    model = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32).eval()
    ids = torch.arange(2, 42).view(2, 20)
    seen: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        block.self_attn.o_proj.register_forward_pre_hook(
            lambda _m, args, layer=layer: seen.__setitem__(layer, args[0].double())
        )
    with torch.no_grad():
        model(input_ids=ids)
    order = by_importance(model, source.elasticity, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    for layer in range(LAYERS):
        norms = model.model.layers[layer].self_attn.o_proj.weight.double().norm(dim=0)
        importance = seen[layer].flatten(0, 1).square().mean(0).sqrt() * norms
        first = importance[:32].square().sum() >= importance[32:].square().sum()
        expected = torch.arange(64) if first else torch.cat([torch.arange(32, 64), torch.arange(32)])
        assert torch.equal(order.columns[f"model.layers.{layer}.self_attn.o_proj"], expected)
