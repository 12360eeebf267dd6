"""NNCF configurations: published files, and errors in broken ones."""

import copy
import json
import os
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
    search = space.search_settings()
    assert (search.algorithm, search.num_evals, search.population, search.ref_acc) == ("NSGA2", 200, 8, 0.45)
    assert (search.seed, search.crossover_prob, search.crossover_eta) == (0, 0.9, 10)
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


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    content = configuration(
        [[RANK_NODE], [RANK_NODE, WIDTH_NODES[0]], WIDTH_NODES, [], ["nonsense"], [WIDTH_NODES[1]]],
        [[6, 8], [8, 4], [128, 0], [4], [4], "all"],
    )
    content["bootstrapNAS"]["training"]["schedule"] = {"list_stage_descriptions": [{"epochs": "six"}, 7]}
    content["bootstrapNAS"]["training"]["elasticity"]["available_elasticity_dims"] = ["width", "depth"]
    path = tmp_path / "space.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError) as caught:
        read_search_space(path)
    lines = str(caught.value).splitlines()
    assert str(path) in lines[0]
    for fault in (
        "group 0: widths must fall from widest to narrowest, found [6, 8]",
        "group 1: mixes lora_A",
        "group 1: model.layers.0.self_attn.q_proj (lora_A) is in group 0 too",
        "group 2: widths must be positive whole numbers, found [128, 0]",
        "group 3: expected a list of node names, found []",
        "group 4: unknown node 'nonsense'",
        "group 5: expected a list of widths, found 'all'",
        "stage 0: epochs must be a number, found 'six'",
        "stage 1: expected an object, found 7",
        "elastic depth (available_elasticity_dims) is not supported",
    ):
        assert any(fault in line for line in lines), fault


@pytest.mark.parametrize("content", [[], {"bootstrapNAS": 3}])
def test_no_section(content: Any) -> None:
    _, problems = parse_search_space(content)
    assert 'no "bootstrapNAS" section' in problems[0]


@pytest.mark.parametrize(
    ("search", "faults"),
    [
        ({"population": "many", "num_evals": [], "seed": 3}, ["num_evals must be a number", "population must be a number"]),
        (7, ["bootstrapNAS.search: expected an object, found 7"]),
    ],
)
def test_faults_of_search_settings_concern_the_search_alone(search: Any, faults: list[str], tmp_path: Path) -> None:
    content = copy.deepcopy(GOOD)
    content["bootstrapNAS"]["search"] = search
    space = read(content, tmp_path)
    assert [group.widths for group in space.groups] == [(8, 6), (128, 64)]
    with pytest.raises(LonasEdgeError, match="search settings cannot be used") as caught:
        space.search_settings()
    listed = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert len(listed) == len(faults)
    assert all(fault in line and "space.json" in line for fault, line in zip(faults, listed, strict=True))


DEPTH = {"min_block_size": 5, "max_block_size": 50}


@pytest.mark.parametrize(
    ("elasticity", "faults"),
    [
        (
            {"available_elasticity_dims": ["kernel", "depth"], "depth": DEPTH},
            ["elastic kernel (available", "elastic depth (available", 'elastic depth (the section "depth")'],
        ),
        ({"available_elasticity_dims": "depth"}, ["available_elasticity_dims must be a list of names, found 'depth'"]),
    ],
)
def test_other_elastic_dimensions_are_refused(elasticity: dict[str, Any], faults: list[str]) -> None:
    """NNCF's other dimensions: sub-networks without them would not be those of the file."""
    content = copy.deepcopy(GOOD)
    content["bootstrapNAS"]["training"]["elasticity"] |= elasticity
    _, problems = parse_search_space(content)
    assert len(problems) == len(faults)
    assert all(fault in problem for fault, problem in zip(faults, problems, strict=True))
    assert all("Remove it" in problem for problem in problems if "must be a list" not in problem)


def test_hash_depends_on_groups_alone() -> None:
    reference = parse_search_space(GOOD)[0].hash
    other = copy.deepcopy(GOOD)
    other["bootstrapNAS"]["search"] = {"population": 3}
    assert parse_search_space(other)[0].hash == reference
    other["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][0] = [8, 4]
    assert parse_search_space(other)[0].hash != reference


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 3000 + b"]" * 3000, "not JSON"),
        (b"\xff", "cannot be read: not UTF-8"),
        (b'{"bootstrapNAS": {"training": {"elasticity": {"width": {"overwrite_groups": 3}}}}}', "needs two lists"),
        (b'{"bootstrapNAS": ' + b"9" * 5000 + b"}", "not"),
        (b"", "not JSON"),
    ],
)
def test_files_that_are_no_search_space(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "space.json").write_bytes(content)
    with pytest.raises(LonasEdgeError, match=rf"(?s)space\.json: .*{message}"):
        read_search_space(tmp_path / "space.json")


def test_devices_and_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (Path("/dev/zero"), tmp_path / "pipe.json", tmp_path):
        with pytest.raises(LonasEdgeError, match=f"{path}: the NNCF configuration cannot be read: .*expected a file"):
            read_search_space(path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ('{"epochs": NaN}', "epochs must be a number"),
        ('{"train_dims": "width"}', "train_dims must be a list of names"),
        ('{"sample_rate": {}}', "sample_rate must be a number"),
    ],
)
def test_stages_of_a_wrong_kind(tmp_path: Path, stage: str, message: str) -> None:
    text = json.dumps(configuration([[RANK_NODE]], [[8]]))
    content = json.loads(text)
    content["bootstrapNAS"]["training"]["schedule"] = {"list_stage_descriptions": ["STAGE"]}
    (tmp_path / "space.json").write_text(json.dumps(content).replace('"STAGE"', stage))
    with pytest.raises(LonasEdgeError, match=f"stage 0: {message}"):
        read_search_space(tmp_path / "space.json")


@pytest.mark.parametrize("widths", [[8.0], [True], [0], [8, 8], [6, 8], [], None, [10**400, "x"]])
def test_widths_of_a_wrong_kind(widths: Any) -> None:
    _, problems = parse_search_space(configuration([[RANK_NODE]], [widths]))
    assert len(problems) == 1 and problems[0].startswith("group 0: ") and len(problems[0]) < 200
