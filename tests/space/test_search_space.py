"""NNCF configurations: published files, and errors in broken ones."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from published_spaces import llama_7b

from lonas_edge.errors import LonasEdgeError
from lonas_edge.space.search_space import Member, SearchSpace, parse_node, parse_search_space, read_search_space

LAYER = (
    "PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/LlamaModel[model]/ModuleList[layers]/LlamaDecoderLayer"
)
MLP = f"{LAYER}[0]/LlamaMLP[mlp]/Linear"
RANK_NODE = f"{LAYER}[0]/LlamaAttention[self_attn]/Linear[q_proj]/ModuleDict[lora_A]/NNCFLinear[default]/linear_0"
WIDTH_NODES = [f"{MLP}[{name}]/NNCFUserSelfLinear[self_linear]/linear_0" for name in ("gate_proj", "up_proj")]


def configuration(groups: Any, widths: Any, **width: Any) -> dict[str, Any]:
    """The smallest NNCF configuration with these groups."""
    elastic = {"overwrite_groups": groups, "overwrite_groups_widths": widths, **width}
    return {"bootstrapNAS": {"training": {"elasticity": {"width": elastic}}}}


GOOD = configuration([[RANK_NODE], WIDTH_NODES], [[8, 6], [128, 64]])


def read(content: dict[str, Any], folder: Path) -> SearchSpace:
    """The space of a file with this content."""
    path = folder / "space.json"
    path.write_text(json.dumps(content))
    return read_search_space(path)


def test_published_llama_7b(tmp_path: Path) -> None:
    space = read(llama_7b(), tmp_path)
    assert [group.kind for group in space.groups] == ["rank"] * 32 + ["width"] * 32 + ["rank"] * 32
    assert space.groups[3].modules == tuple(f"model.layers.3.self_attn.{name}_proj" for name in "qkv")
    assert space.groups[35].modules == ("model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj")
    assert [member.role for member in space.groups[35].members] == ["base", "lora_B", "base", "lora_B"]
    assert space.groups[67].modules == ("model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj")
    assert {group.widths for group in space.groups if group.kind == "rank"} == {(32, 28)}
    assert {group.widths for group in space.groups if group.kind == "width"} == {(11008, 9632, 8256, 6880, 5504)}
    assert space.sequence_length == 256
    (stage,) = space.stages
    assert (stage.epochs, stage.init_lr, stage.epochs_lr, stage.width_indicator, stage.sample_rate) == (6, 3e-4, 6, 5, 1)
    assert (stage.train_dims, stage.reorg_weights) == (("width",), False)
    search = space.search
    assert (search.population, search.seed, search.crossover_prob, search.crossover_eta) == (8, 0, 0.9, 10)
    assert (search.mutation_prob, search.mutation_eta) == (0.02, 3)


def test_comments_trailing_commas_and_scientific_notation(tmp_path: Path) -> None:
    stages = '{"list_stage_descriptions": [{"init_lr": 3e-4, "epochs": 1E+1,}, /* second */ {"init_lr": 1.5e-05}],}'
    elastic = json.dumps(GOOD["bootstrapNAS"]["training"]["elasticity"])[:-1] + ",}"
    path = tmp_path / "space.json"
    path.write_text(
        "// a comment first\n"
        '{"input_info": {"sample_size": [1, 128]}, // and one that says "quote\n'
        f'"bootstrapNAS": {{"training": {{"schedule": {stages}, "elasticity": {elastic},}},}},}}\n'
    )
    space = read_search_space(path)
    assert [stage.init_lr for stage in space.stages] == [3e-4, 1.5e-5]
    assert space.stages[0].epochs == 10
    assert space.sequence_length == 128
    assert [group.widths for group in space.groups] == [(8, 6), (128, 64)]


@pytest.mark.parametrize(
    ("node", "module", "role"),
    [
        (f"{MLP}[gate_proj]/NNCFUserSelfLinear[self_linear]/linear_0", "model.layers.0.mlp.gate_proj", "base"),
        (f"{LAYER}[12]/LlamaMLP[mlp]/NNCFLinear[gate_proj]/linear_0", "model.layers.12.mlp.gate_proj", "base"),
        (f"{MLP}[up_proj]/ModuleDict[lora_A]/NNCFLinear[default]/linear_0", "model.layers.0.mlp.up_proj", "lora_A"),
        ("PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/NNCFLinear[lm_head]/linear_0", "lm_head", "base"),
        (
            "LlamaForCausalLM/LlamaModel[model]/ModuleList[layers]/X[1]/Y[mlp]/NNCFLinear[z]/linear_0",
            "model.layers.1.mlp.z",
            "base",
        ),
    ],
)
def test_node_names(node: str, module: str, role: str) -> None:
    assert parse_node(node) == Member(module, role, node)


def test_all_errors_are_listed_at_once(tmp_path: Path) -> None:
    content = configuration(
        [[RANK_NODE], [RANK_NODE, WIDTH_NODES[0]], WIDTH_NODES, [], ["nonsense"], [WIDTH_NODES[1]]],
        [[6, 8], [8, 4], [128, 0], [4], [], "all"],
    )
    stages = [{"epochs": "six"}, 7, {"epochs": math.nan}, {"train_dims": ["depth"]}, {"sample_rate": 1.5}, {"init_lr": -1}]
    content["bootstrapNAS"]["training"]["schedule"] = {"list_stage_descriptions": stages}
    content["bootstrapNAS"]["search"] = {"population": "many", "mutation_prob": 3}
    with pytest.raises(LonasEdgeError, match=r"space\.json: not a usable NNCF search space:") as caught:
        parse_search_space(content, "space.json")
    expected = [
        "elasticity.width.overwrite_groups.1: the group mixes lora_A",
        "elasticity.width.overwrite_groups.3: List should have at least 1 item",
        "elasticity.width.overwrite_groups.4: unknown node 'nonsense'",
        "elasticity.width.overwrite_groups_widths.0: widths must fall from widest to narrowest, found [6, 8]",
        "elasticity.width.overwrite_groups_widths.2.1: Input should be greater than or equal to 1, found 0",
        "elasticity.width.overwrite_groups_widths.4: List should have at least 1 item",
        "elasticity.width.overwrite_groups_widths.5: Input should be a valid list, found 'all'",
        "schedule.list_stage_descriptions.0.epochs: Input should be a valid number",
        "schedule.list_stage_descriptions.1: Input should be a valid dictionary",
        "schedule.list_stage_descriptions.2.epochs: Input should be ",
        "schedule.list_stage_descriptions.3.train_dims: expected width, or width and depth, found ['depth']",
        "schedule.list_stage_descriptions.4.sample_rate: Input should be a valid integer, found 1.5",
        "schedule.list_stage_descriptions.5.init_lr: Input should be greater than 0, found -1",
        "search.population: Input should be a valid integer, found 'many'",
        "search.mutation_prob: Input should be less than or equal to 1, found 3",
    ]
    listed = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert len(listed) == len(expected)
    for line, text in zip(listed, expected, strict=True):
        assert text in line


@pytest.mark.parametrize("content", [[], {"model_type": "llama"}])
def test_no_section(content: Any) -> None:
    with pytest.raises(LonasEdgeError, match=r"(?s)space\.json: .*`lonas-edge space` writes one"):
        parse_search_space(content, "space.json")


@pytest.mark.parametrize(
    "elasticity", [{"available_elasticity_dims": ["kernel", "depth"]}, {"depth": {"max_block_size": 50}, "kernel": {}}]
)
def test_other_elastic_dimensions_are_refused(elasticity: dict[str, Any]) -> None:
    """NNCF's other dimensions: sub-networks without them would not be those of the file."""
    content = copy.deepcopy(GOOD)
    content["bootstrapNAS"]["training"]["elasticity"] |= elasticity
    with pytest.raises(LonasEdgeError, match=r"elastic (kernel and depth|depth and kernel): not supported"):
        parse_search_space(content, "space.json")


@pytest.mark.parametrize(
    ("groups", "widths", "message"),
    [
        ([[RANK_NODE], WIDTH_NODES], [[8]], "2 overwrite_groups but 1 overwrite_groups_widths"),
        ([[RANK_NODE], [RANK_NODE]], [[8], [4]], r"group 1: model.layers.0.self_attn.q_proj \(lora_A\) is in group 0 too"),
    ],
)
def test_groups_that_contradict_each_other(groups: Any, widths: Any, message: str) -> None:
    with pytest.raises(LonasEdgeError, match=message):
        parse_search_space(configuration(groups, widths), "space.json")


def test_hash_depends_on_groups_alone() -> None:
    reference = parse_search_space(GOOD, "a").hash
    other = copy.deepcopy(GOOD)
    other["bootstrapNAS"]["search"] = {"population": 3}
    assert parse_search_space(other, "b").hash == reference
    other["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][0] = [8, 4]
    assert parse_search_space(other, "b").hash != reference


def test_a_file_that_is_no_search_space(tmp_path: Path) -> None:
    (tmp_path / "space.json").write_text('{"bootstrapNAS": ')
    with pytest.raises(LonasEdgeError, match=r"(?s)space\.json: .*pyjson5 cannot read it"):
        read_search_space(tmp_path / "space.json")
