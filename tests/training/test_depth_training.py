"""Training with blocks that are left out: draws, stages, and a super-adapter against the oracle."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from safetensors.torch import load_file
from tiny_models import TinyModels
from training_runs import ADAPTER, SPACE, TWELVE, run, run_killed, write_data

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.search_space import BLOCK_WIDTHS, Group, Member, SearchSpace, Stage
from lonas_edge.training.plan import TrainOptions, make_plan

DEEP = Stage(train_dims=("width", "depth"))
BLOCKS = tuple(Group((Member(f"block{index}", "block", ""),), BLOCK_WIDTHS) for index in range(50))
WIDTH = Group((Member("layer", "lora_A", ""),), (8, 6))


def drawn(*stages: Stage, **options: object) -> list[tuple[int, ...]]:
    plan = make_plan(SearchSpace((WIDTH, *BLOCKS), stages), TrainOptions(steps=100, **options), 160)  # type: ignore[arg-type]
    return [plan.drawn(step) for step in range(100)]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_blocks_are_left_out_at_the_rate(rate: float) -> None:
    draws = drawn(DEEP, depth_rate=rate)
    left_out = sum(width == 0 for one in draws for width in one[1:]) / (100 * 50)
    assert left_out == pytest.approx(rate, abs=0.03)
    assert {one[0] for one in draws} == {8, 6}


def test_a_stage_holds_depth_back() -> None:
    draws = drawn(Stage(), replace(DEEP, width_indicator=1), depth_rate=0.5)
    assert all(set(one[1:]) == {1} for one in draws[:50])
    assert all(set(one[1:]) == {0, 1} and one[0] == 8 for one in draws[50:])


def test_where_no_stage_is_given_depth_is_trained() -> None:
    assert {width for one in drawn(depth_rate=0.5) for width in one[1:]} == {0, 1}


def test_the_sandwich_keeps_blocks_in_its_narrowest() -> None:
    plan = make_plan(SearchSpace((WIDTH, *BLOCKS), (DEEP,)), TrainOptions(steps=3, sampling="sandwich"), 160)
    widest, narrowest, third = plan.trained(1)
    assert widest == (8, *[1] * 50) and narrowest == (6, *[1] * 50)
    assert third == plan.drawn(1) and 0 in third


def test_depth_of_a_space_without_blocks_is_refused() -> None:
    with pytest.raises(LonasEdgeError, match=r"train_dims = \('width', 'depth'\); expected \[\"width\"\]"):
        make_plan(SearchSpace((WIDTH,), (DEEP,)), TrainOptions(), 160)
    with pytest.raises(LonasEdgeError, match=r"expected \[\"width\"\] or \[\"width\", \"depth\"\]"):
        make_plan(SearchSpace((WIDTH, *BLOCKS), (Stage(train_dims=("depth",)),)), TrainOptions(), 160)


@pytest.fixture
def deep(tiny_models: TinyModels, tmp_path: Path) -> Callable:
    """`deep(case)`: a source whose stage trains depth; `deep(case, heads=True)` has elastic heads, too."""

    def make(case: str, heads: bool = False) -> object:
        source = tiny_models.heads_source(case) if heads else tiny_models.deep_source(case)
        content = json.loads(source.space.read_text())
        content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
        (tmp_path / "deep.json").write_text(json.dumps(content))
        return replace(source, space=tmp_path / "deep.json")

    return make


@pytest.mark.parametrize("case", ["llama", "gemma2", "neox", "phi3", "bloom"])
def test_trained_networks_answer_as_defined(
    case: str, deep: Callable, choose: Callable, ids: torch.Tensor, tmp_path: Path
) -> None:
    source, output = deep(case), tmp_path / "out"
    record = run(source, write_data(tmp_path / "data.json", TWELVE), output, depth_rate=0.5, distill=0.3)
    assert record["stages"][0]["depth_rate"] == record["options"]["depth_rate"] == 0.5
    network = load_super_network(open_source(str(output)))
    for depth in ([1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]):
        widths = choose(source, "unequal:3")[:-3] + depth
        network.activate(widths)
        with torch.inference_mode():
            found = network.model(input_ids=ids).logits
        expected = oracle_logits(source.base, output, output / SPACE, widths, ids)
        assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", ["llama", "gemma3", "neox", "phi3"])
def test_trained_heads_answer_as_defined(case: str, deep: Callable, ids: torch.Tensor, tmp_path: Path) -> None:
    """Trained with heads in order of importance, widths and blocks drawn, too."""
    source, output = deep(case, heads=True), tmp_path / "out"
    run(source, write_data(tmp_path / "data.json", TWELVE), output, depth_rate=0.3)
    opened = open_source(str(output))
    assert {name for name in opened.order.columns if opened.architecture.units[name] > 1}, "heads were ordered"
    network = load_super_network(opened)
    groups = source.groups()
    for heads in ([0, 0, 0], [-1, 0, -1], [-1, -1, -1]):
        cut = [group[place] for group, place in zip(groups[9:12], heads, strict=True)]
        widths = [group[-1] for group in groups[:9]] + cut + [1, 1, 0]
        network.activate(widths)
        with torch.inference_mode():
            found = network.model(input_ids=ids).logits
        expected = oracle_logits(source.base, output, output / SPACE, widths, ids)
        assert (found - expected).abs().max() < 1e-4


def test_adapters_of_what_is_left_out_stay(deep: Callable, tmp_path: Path) -> None:
    """With every block of a group always left out, its adapters end where they began: lora_B at zero."""
    source, output = deep("llama"), tmp_path / "out"
    run(source, write_data(tmp_path / "data.json", TWELVE), output, depth_rate=1.0, weight_decay=0.1)
    tensors = load_file(output / ADAPTER)
    gone = ("layers.0.self_attn", "layers.1.self_attn", "layers.1.mlp", "layers.2.mlp")
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            assert bool(tensor.abs().max() == 0) == any(block in name for block in gone), name


def test_resumed_as_uninterrupted(deep: Callable, tmp_path: Path) -> None:
    source, data = deep("llama"), write_data(tmp_path / "data.json", TWELVE)
    run(source, data, tmp_path / "whole", depth_rate=0.5)
    run_killed(source, data, tmp_path / "resumed", at=5, depth_rate=0.5)
    run(source, data, tmp_path / "resumed", resume=True, depth_rate=0.5)
    whole, resumed = (load_file(tmp_path / name / ADAPTER) for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
