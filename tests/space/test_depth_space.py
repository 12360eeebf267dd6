"""Search spaces with removable blocks: the file's section, sub-networks, sizes, pictures; what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CASES, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB, TinyModels, TinySource, block_path
from transformers import AutoConfig

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, FAMILIES
from lonas_edge.network.source import open_source
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import bind
from lonas_edge.space.generate import removable_blocks
from lonas_edge.space.picture import draw, picture_of
from lonas_edge.space.search_space import SearchSpace, parse_search_space
from lonas_edge.space.subnetwork import Subnetwork, unpruned

ATTENTION = "model.layers.{}.self_attn"


def content_of(source: TinySource) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(source.space.read_text())
    return content


def with_section(source: TinySource, section: Any) -> SearchSpace:
    content = content_of(source)
    content["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"] = section
    return parse_search_space(content, "space.json")


def test_groups_of_blocks_come_last(tiny_models: TinyModels) -> None:
    source = tiny_models.deep_source("llama")
    space = source.opened().space
    assert [group.kind for group in space.groups[9:]] == ["block"] * 3
    assert [group.widths for group in space.groups[9:]] == [(1, 0)] * 3
    assert space.groups[10].modules == ("model.layers.1.self_attn", "model.layers.1.mlp")
    plain = tiny_models.source("llama").opened().space
    assert space.groups[:9] == plain.groups
    assert space.hash != plain.hash and not plain.has_blocks and space.has_blocks


@pytest.mark.parametrize(("classifies", "layers"), [(False, [1]), (True, [1, 2])])
def test_whole_layers_of_a_decoder(classifies: bool, layers: list[int], tiny_models: TinyModels, tmp_path: Path) -> None:
    """A group of the layer's blocks each. The first layer stays, of language models the last one, too."""
    content = json.loads((tiny_models.base("llama") / "config.json").read_text())
    content["architectures"] = ["LlamaForSequenceClassification" if classifies else "LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    architecture = open_source(str(tmp_path), weights=False, elastic=False).architecture
    expected = [[f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"] for layer in layers]
    assert removable_blocks(architecture, ("layer",), "m") == expected
    with pytest.raises(LonasEdgeError, match="m: --depth layer,mlp: a layer has all blocks; name layer or the others"):
        removable_blocks(architecture, ("layer", "mlp"), "m")


SECTIONS = [
    ({"version": 2, "blocks": []}, r"elasticity\.lonas_edge\.version: Input should be 1, found 2"),
    ({"version": 1, "blocks": [["a"], ["b", "a"]]}, r"group 10: a \(block\) is in group 9 too"),
]


@pytest.mark.parametrize(("section", "message"), SECTIONS)
def test_a_section_that_cannot_be_read(section: Any, message: str, llama: TinySource) -> None:
    with pytest.raises(LonasEdgeError, match=message):
        with_section(llama, section)


MISMATCHES = [
    ([["model.layers.3.mlp"]], ["group 9: unknown block 'model.layers.3.mlp'", "model.layers.0 to 2 with self_attn or mlp"]),
    ([[ATTENTION.format(layer)] for layer in range(LAYERS)], ["every layer's attention is removable"]),
]


@pytest.mark.parametrize(("blocks", "messages"), MISMATCHES)
def test_a_section_that_does_not_fit(blocks: list, messages: list[str], llama: TinySource) -> None:
    space = with_section(llama, {"version": 1, "blocks": blocks})
    with pytest.raises(LonasEdgeError) as raised:
        bind(Architecture.from_config(AutoConfig.for_model(**CASES["llama"]), "m"), space, "space.json")
    assert all(text in str(raised.value) for text in ["space.json", *messages])


def test_blocks_of_every_family() -> None:
    for case, config in CASES.items():
        architecture = Architecture.from_config(AutoConfig.for_model(**config), case)
        assert set(architecture.blocks) == {
            block_path(case, layer, kind) for layer in range(LAYERS) for kind in ("attention", "mlp")
        }
        for config in (architecture.of_layer(architecture.family.layer(index)) for index in range(LAYERS)):
            inside = {norm for block in architecture.family.blocks(config) for norm in block.norms}
            norms = {name.rpartition(".")[0] for name in architecture.family.vectors(config) if "norm" in name}
            shared = ("altup.", "laurel.", "post_per_layer", *["input_"] * (case.startswith("gemma3n")))  # not of a block alone
            assert {name for name in norms if not name.startswith(("self_attn.", "mamba.", *shared))} == inside
    assert {type(family) for family in FAMILIES if family.kind == CAUSAL_LM} == {
        type(Architecture.from_config(AutoConfig.for_model(**c), "").family) for c in CASES.values()
    }


def test_sizes_with_heads(tiny_models: TinyModels) -> None:
    """From formulas: two heads of four, with one key-value head of two, in the first and third attention; MLPs unequal."""
    source = tiny_models.heads_source("llama").opened()
    vectors = 2 * LAYERS * HIDDEN + HIDDEN  # norms: two a layer, and the last one

    def sizes_of(heads: list[int], mlps: list[int], kept: tuple[int, int, int]) -> tuple[int, int, list[tuple[int, int]]]:
        """Parameters, linear weights with adapters of rank 8 (none on o_proj), and the matrices [rows, columns]."""
        there = ((kept[0], 1), (kept[1], kept[1]), (1, kept[2]))  # attention and MLP of each layer: `removable_blocks`
        matrices, adapters, norms = [], 0, vectors
        for query, mlp, (attends, widens) in zip(heads, mlps, there, strict=True):
            key_value = query // 2  # a key-value head to two query heads
            if attends:
                matrices += [(query, HIDDEN), (key_value, HIDDEN), (key_value, HIDDEN), (HIDDEN, query)]
                adapters += 8 * (HIDDEN + query) + 2 * 8 * (HIDDEN + key_value)
            if widens:
                matrices += [(mlp, HIDDEN), (mlp, HIDDEN), (HIDDEN, mlp)]
                adapters += 3 * 8 * (HIDDEN + mlp)
            norms -= HIDDEN * ((not attends) + (not widens))
        matrices += [(VOCAB, HIDDEN)] * 2  # embedding and head
        weights = sum(rows * columns for rows, columns in matrices)
        return weights + norms, weights - VOCAB * HIDDEN + adapters, matrices

    for heads, mlps, kept in (
        ([32, 64, 32], [128, 128, 128], (1, 1, 1)),
        ([32, 32, 32], [64, 96, 128], (1, 1, 1)),
        ([64, 64, 32], [64, 96, 128], (0, 1, 0)),
        ([32, 32, 32], [128, 64, 64], (0, 0, 1)),
    ):
        sizes = source.sizes(source.subnetwork([8] * 3 + mlps + [8] * 3 + heads + list(kept)))
        parameters, linear, matrices = sizes_of(heads, mlps, kept)
        assert (sizes.parameters, sizes.linear_weights, sizes.macs) == (parameters, linear, 256 * linear)
        others = parameters - sum(rows * columns for rows, columns in matrices)
        assert sizes.bytes["fp32"] == 4 * parameters
        assert sizes.bytes["int8_sym"] == sum(rows * columns + 2 * rows for rows, columns in matrices) + 4 * others
    alone = [
        source.sizes(source.subnetwork([8] * 3 + [128] * 3 + [8] * 3 + [64, query, 64] + [1, 1, 1])).parameters
        for query in (64, 32)
    ]
    assert alone[0] - alone[1] == 2 * 32 * HIDDEN + 2 * 16 * HIDDEN  # rows of q and columns of o, rows of k and v
    gone = [source.sizes(source.subnetwork([8] * 3 + [128] * 3 + [8] * 3 + [64, query, 64] + [1, 0, 1])) for query in (64, 32)]
    assert gone[0] == gone[1], "heads of an attention that is not there"


def test_picture(tiny_models: TinyModels) -> None:
    elasticity = tiny_models.deep_source("llama").opened().elasticity
    widths = [8] * 3 + [128, 96, 64] + [8] * 3
    assert draw(picture_of(Subnetwork(elasticity, (*widths, 0, 1, 0)))) == [
        "layer  attention heads               MLP width",
        f"    0  {'·' * 24}   0  {'█' * 24} 128",
        f"    1  {'█' * 24}   4  {'█' * 18}{'·' * 6}  96",
        f"    2  {'█' * 24}   4  {'·' * 24}   0",
    ]
    alike = draw(picture_of(Subnetwork(elasticity, tuple(elasticity.maximal))))
    assert alike == ["layer  attention heads               MLP width", f"  0-2  {'█' * 24}   4  {'█' * 24} 128"]


def test_cache_of_a_sub_network(tiny_models: TinyModels) -> None:
    """Keys and values of a token: of a head's channels, twice for each key-value head, in layers with attention."""
    layer, head = 2 * KV_HEADS * HIDDEN // HEADS, 2 * HIDDEN // HEADS
    depth = tiny_models.deep_source("llama").opened().elasticity
    whole = [*depth.maximal[:-3]]
    assert unpruned(depth.architecture).kv_elements() == LAYERS * layer
    assert Subnetwork(depth, tuple(depth.maximal)).kv_elements() == LAYERS * layer
    assert Subnetwork(depth, (*whole, 0, 1, 1)).kv_elements() == (LAYERS - 1) * layer
    rigid = tiny_models.deep_source("olmo2").opened().elasticity  # its heads are not elastic
    assert Subnetwork(rigid, tuple(rigid.maximal)).kv_elements() == LAYERS * layer
    assert Subnetwork(rigid, (*rigid.maximal[:-3], 0, 1, 1)).kv_elements() == (LAYERS - 1) * layer
    source = tiny_models.heads_source("llama")
    heads = source.opened().elasticity
    chosen = [group[0] for group in source.groups()[:9]] + [64, 32, 32]
    assert Subnetwork(heads, (*chosen, 1, 1, 1)).kv_elements() == layer + 2 * head
    assert Subnetwork(heads, (*chosen, 0, 1, 1)).kv_elements() == 2 * head
