"""Sizes from configurations alone, against the published figures, hand formulas and the real modules."""

import json
from math import prod
from pathlib import Path

import pytest
from tiny_models import CASES, HIDDEN, LAYERS, MLP, RANK, VOCAB, TinyModels, families, unused_layers
from transformers import AutoConfig, AutoModelForCausalLM

from lonas_edge.space.architecture import Architecture
from lonas_edge.space.subnetwork import unpruned


def test_llama_7b_as_published(run_cli, llama_7b: tuple[Path, Path], published_space: Path) -> None:
    ran = run_cli("inspect", llama_7b[1], "--model", llama_7b[0], "--nncf-config", published_space, "--json")
    assert ran.code == 0
    content = json.loads(ran.out)
    # a layer: four attention matrices, three of the MLP, rank 32 on q, k, v and on gate, up, down; then the head
    unpruned = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 3 * 32 * (4096 + 4096) + 3 * 32 * (4096 + 11008)) + 32000 * 4096
    heuristic = 32 * (4 * 4096**2 + 3 * 4096 * 8256 + 3 * 32 * (4096 + 4096) + 3 * 32 * (4096 + 8256)) + 32000 * 4096
    assert content["unpruned"]["linear_weights"] == unpruned
    assert content["subnetwork"]["linear_weights"] == heuristic
    assert (f"{unpruned:.2e}", f"{heuristic:.2e}") == ("6.68e+09", "5.59e+09")
    assert f"{content['unpruned']['macs']:.2e}" == "1.71e+12"
    assert f"{content['subnetwork']['macs']:.2e}" == "1.43e+12"
    assert content["unpruned"]["seq_len"] == 256
    assert content["unpruned"]["parameters"] == 6_738_415_616  # the plain LLaMA-7B
    assert len(content["groups"]) == 96
    assert content["groups"][40] == {
        "name": "layers.8.mlp.width",
        "kind": "width",
        "modules": ["model.layers.8.mlp.gate_proj", "model.layers.8.mlp.up_proj"],
        "widths": [11008, 9632, 8256, 6880, 5504],
        "width": 8256,
    }


@pytest.mark.parametrize("case", families())
def test_parameters_and_shapes_are_those_of_the_modules(case: str, tiny_models: TinyModels) -> None:
    config = AutoConfig.for_model(**CASES[case])
    architecture = Architecture.from_config(config, case)
    model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert architecture.shapes == shapes
    sizes = unpruned(architecture).sizes({}, 1)
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    unused = [f"{name}.weight" for name in unused_layers(case)]  # not in an IR
    stored = sizes.parameters - sum(prod(shapes[name]) for name in unused)
    assert sizes.macs == sizes.linear_weights - sum(prod(shapes[name]) for name in unused)  # of one token
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and name not in unused]
    vectors = sum(prod(shape) for shape in shapes.values() if len(shape) != 2)
    assert sizes.bytes["fp32"] == 4 * stored
    assert sizes.bytes["fp16"] == 2 * stored + 2 * vectors  # norms, biases and convolutions stay fp32
    assert sizes.bytes["int8"] == sum(rows * columns + 3 * rows for rows, columns in matrices) + 4 * vectors


def test_linear_weights_of_an_unequal_subnetwork(tiny_models: TinyModels) -> None:
    source = tiny_models.source("qwen3-tied").opened()
    ranks, mlps, mlp_ranks = [6, 8, 6], [128, 64, 96], [8, 6, 6]
    expected = VOCAB * HIDDEN  # the head, though it is tied
    query, key = 4 * 24, 2 * 24  # heads of 24 on a hidden size of 64
    for rank, mlp, mlp_rank in zip(ranks, mlps, mlp_ranks, strict=True):
        expected += HIDDEN * (query + 2 * key) + query * HIDDEN + 3 * HIDDEN * mlp
        expected += rank * ((HIDDEN + query) + 2 * (HIDDEN + key)) + (2 * mlp_rank + RANK) * (HIDDEN + mlp)
    sizes = source.sizes(source.subnetwork([*ranks, *mlps, *mlp_ranks]), 3)
    assert (sizes.linear_weights, sizes.macs) == (expected, 3 * expected)
    unpruned = source.sizes(source.unpruned, 3)
    assert unpruned.parameters - sizes.parameters == 3 * HIDDEN * sum(MLP - mlp for mlp in mlps)
    assert len(mlps) == LAYERS


def test_inspect_reads_no_weights(run_cli, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models.source("qwen2-tied").copied_to(tmp_path)
    for path in (source.base / "model.safetensors", source.adapter / "adapter_model.safetensors"):
        path.unlink()
    ran = run_cli("inspect", *source.arguments(), "--json")
    assert ran.code == 0
    content = json.loads(ran.out)
    assert [group["width"] for group in content["groups"]] == [8, 8, 8, 96, 96, 96, 8, 8, 8]
    assert [content[name]["token_parameters"] for name in ("unpruned", "subnetwork")] == [288 * 64, 288 * 64]  # tied


@pytest.mark.parametrize(("case", "tables"), [("llama", 2), ("llama-tied", 1)])
def test_the_share_of_embedding_and_head(case: str, tables: int, run_cli, tiny_models: TinyModels) -> None:
    """288 tokens of 64 columns, once where they are tied."""
    ran = run_cli("inspect", tiny_models.base(case), "--json")
    sizes = json.loads(ran.out)["unpruned"]
    assert sizes["token_parameters"] == tables * 288 * 64
    shown = " ".join(run_cli("inspect", tiny_models.base(case)).out.split())
    assert f"parameters of embedding and head {sizes['token_parameters']:,} " in shown
