"""Searches over widths, heads and blocks; all networks of the tiny LLaMA are evaluated without it, too."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import TinyModels, TinySource
from transformers import AutoConfig, AutoModelForCausalLM

from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.dimensions import find_dimensions, measure_sensitivity
from lonas_edge.search.latency_table import find_kinds, predicted_cost, uniform_networks
from lonas_edge.search.picks import parse_picks
from lonas_edge.search.proposals import warm_start
from lonas_edge.space.elasticity import Elasticity


@pytest.fixture
def deep(tiny_models: TinyModels) -> TinySource:
    return tiny_models.deep_source("llama")


@pytest.fixture(params=["deep", "heads"])
def few(request: pytest.FixtureRequest, deep: TinySource, tiny_models: TinyModels, tmp_path: Path) -> TinySource:
    """A space of few networks: MLPs and blocks, or heads and blocks with one elastic MLP."""
    if request.param == "deep":
        return deep
    source = tiny_models.heads_source("llama")
    content = json.loads(source.space.read_text())
    values = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    values[3:6] = [[128], [128], [128, 64]]
    (tmp_path / "few.json").write_text(json.dumps(content))
    return replace(source, space=tmp_path / "few.json")


def holders(groups: list[list[int]]) -> dict[int, int]:
    """The group of blocks that holds each group of MLP widths and of heads."""
    first, attention, both, mlp = len(groups) - 3, 0, 1, 2
    heads = {9: first + attention, 10: first + both} if first > 9 else {}
    return {4: first + both, 5: first + mlp} | heads


def distinct(elasticity: Elasticity, groups: list[list[int]]) -> set[tuple[int, ...]]:
    """Every network once: MLP widths and heads in removed blocks have no effect."""
    choices = [values if max(values) != 8 else values[:1] for values in groups]
    networks, holder = set(), holders(groups)
    for widths in itertools.product(*choices):
        gone = {index for index, block in holder.items() if widths[block] == 0}
        plain = tuple(groups[index][0] if index in gone else width for index, width in enumerate(widths))
        assert elasticity.canonical(widths) == plain
        networks.add(plain)
    return networks


def test_a_search(run_cli: Callable, few: TinySource, data: Path, tmp_path: Path) -> None:
    """Equal networks count once; the pick is the best evaluated network."""
    command = ["search", *few.arguments(), "--data", data, "--output", tmp_path / "out", "--cost", "bytes"]
    run_cli(*command, "--num-samples", 8, "--evals", 30, "--pick", "bytes<=0.8x").ok()
    record = json.loads((tmp_path / "out/search.json").read_text())
    source = few.opened()
    networks = distinct(source.elasticity, few.groups())
    assert find_dimensions(source).size == len(networks) > 30
    evaluated = {tuple(network["widths"]): (network["quality"], network["cost"]) for network in record["evaluations"]}
    assert len(evaluated) == len(record["evaluations"]) == 30 and evaluated.keys() <= networks
    batches = source.open_data(data, "alpaca").batches(load_tokenizer(few.base), 8, 0)
    kl = load_super_network(source).kl(list(evaluated), batches)
    assert [quality for quality, _ in evaluated.values()] == pytest.approx(kl, abs=1e-5)
    bound = 0.8 * source.sizes(source.select("maximal")).bytes["int8_sym"]
    best = record["evaluations"][record["picks"][0]["evaluation"]]
    assert best["quality"] == min(quality for quality, cost in evaluated.values() if cost <= bound)
    assert 0 in best["widths"], "narrow MLPs or heads alone are larger"


@pytest.mark.parametrize(("case", "heads"), [("neox", False), ("gemma3", False), ("phi3", True)])
def test_sensitivity_of_blocks(case: str, heads: bool, tiny_models: TinyModels, data: Path) -> None:
    """Blocks, and numbers of heads in layers with and without removable attention."""
    source = tiny_models.heads_source(case) if heads else tiny_models.deep_source(case)
    opened, groups = source.opened(), source.groups()
    network = load_super_network(opened)
    batches = opened.open_data(data, "alpaca").batches(load_tokenizer(source.base), 6, 0)
    searched = find_dimensions(opened).searched
    assert searched == (3, 4, 5, *range(9, len(groups))) and len(groups) == 12 + 3 * heads
    table = measure_sensitivity(network, batches, network.reference(batches), searched)
    maximal = [values[0] for values in groups]
    for group in searched:
        alone = [[*maximal[:group], value, *maximal[group + 1 :]] for value in groups[group]]
        assert table[group] == pytest.approx(network.kl(alone, batches), rel=1e-3, abs=1e-5)
        assert len(table[group]) == len(groups[group]) and table[group][-1] > 1e-4


def test_latency_of_heads_and_blocks(tiny_models: TinyModels) -> None:
    """Heads are a kind; each kind of blocks has a network without any of them; widths in a removed block save nothing more."""
    tiny = tiny_models.heads_source("llama")
    source, groups = tiny.opened(), tiny.groups()
    heads = "self_attn.k_proj, self_attn.q_proj, self_attn.v_proj"
    kinds = {kind.name: kind for kind in find_kinds(source)}
    assert set(kinds) == {"mlp.gate_proj, mlp.up_proj", heads, "self_attn", "mlp, self_attn", "mlp"}
    assert (kinds[heads].layers, kinds[heads].widths) == ({9: 1, 10: 1, 11: 1}, (64, 32))
    assert [kinds[name].layers for name in ("self_attn", "mlp, self_attn", "mlp")] == [{12: 1}, {13: 1}, {14: 1}]
    networks = uniform_networks(source, find_kinds(source))
    assert len(set(networks.values())) == 1 + 2 + 1 + 3  # the widest; two widths of MLPs, one of heads, blocks
    widest = [values[0] for values in groups]
    assert networks[heads, 32] == (*widest[:9], 32, 32, 32, 1, 1, 1)
    assert networks["mlp, self_attn", 0] == (*widest[:12], 1, 0, 1)
    saved = {"mlp.gate_proj, mlp.up_proj": 0.3, heads: 0.6, "self_attn": 0.7, "mlp, self_attn": 1.5, "mlp": 0.4}
    table = {}
    for name, kind in kinds.items():
        most, least = kind.widths[0], kind.widths[-1]
        shares = [(most - width) / (most - least) for width in kind.widths]
        table[name] = {"ttft": [10 - saved[name] * share for share in shares]}
        table[name]["tpot"] = [1 - saved[name] * share / 10 for share in shares]

    def predicted(metric: str, mlp: list[int], kept: list[int], depth: list[int]) -> float:
        chosen = source.elasticity.canonical([*groups[0][:1] * 3, *mlp, *groups[6][:1] * 3, *kept, *depth])
        return predicted_cost(metric, source, CostSettings(), table)(chosen)

    whole = [128, 128, 128]
    assert predicted("ttft", whole, [64, 64, 64], [1, 1, 1]) == pytest.approx(10)
    assert predicted("ttft", whole, [32, 64, 32], [1, 1, 1]) == pytest.approx(10 - 2 * 0.2)
    assert predicted("ttft", whole, [32, 64, 32], [0, 1, 1]) == pytest.approx(10 - 0.7 - 0.2)
    assert predicted("ttft", [128, 64, 128], [64, 32, 64], [1, 0, 1]) == pytest.approx(10 - 1.5)
    assert predicted("tpot", [64, 64, 64], [32, 32, 32], [0, 0, 0]) == pytest.approx(1 - 0.01 - 0.02 - 0.07 - 0.15 - 0.04)


@pytest.mark.parametrize("share", [0.95, 0.65])
def test_warm_start_at_a_pick_with_blocks(share: float, tiny_models: TinyModels) -> None:
    """The least total sensitivity under a bound; a width inside a removed block saves nothing."""
    tiny = tiny_models.heads_source("llama")
    source, groups = tiny.opened(), tiny.groups()
    dimensions, draw = find_dimensions(source), random.Random(3)
    rows = tuple(
        (0.0, *sorted(draw.random() for _ in values[1:])) if index in dimensions.searched else ()
        for index, values in enumerate(groups)
    )

    def cost(widths: Sequence[int]) -> float:
        return source.sizes(source.subnetwork(widths)).bytes["int8"]

    def sensitivity(widths: Sequence[int]) -> float:
        levels = [values.index(width) for values, width in zip(groups, widths, strict=True)]
        return sum(row[level] for row, level in zip(rows, levels, strict=True) if row)

    (pick,) = parse_picks([f"bytes<={share}x"], ["bytes"])
    origins = warm_start(dimensions, 100, rows, cost, {pick: cost})
    (chosen,) = [widths for widths, origin in origins.items() if origin == f"warm-start:pick:{pick.expression}"]
    bound = share * cost(source.elasticity.maximal)
    under = [widths for widths in distinct(source.elasticity, groups) if cost(widths) <= bound]
    assert cost(chosen) <= bound
    assert sensitivity(chosen) == pytest.approx(min(map(sensitivity, under)), rel=1e-6)


def test_too_few_evaluations(run_cli: Callable, deep: TinySource, tmp_path: Path) -> None:
    """A greedy removal that is cut off gives an error, not the smallest network; more evaluations continue it."""
    base, data, space, out = tmp_path / "base", tmp_path / "texts.jsonl", tmp_path / "space.json", tmp_path / "out"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(deep.base, num_hidden_layers=5)).save_pretrained(base)
    load_tokenizer(deep.base).save_pretrained(base)
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the cat sat", "one plus two is three", "a dog")))
    run_cli("space", "--model", base, "--depth", "attention,mlp", "--ratios", "1", "--output", space).ok()
    command = ["search", base, "--nncf-config", space, "--data", data, "--output", out, "--cost", "macs", "--num-samples", 3]
    refused = run_cli(*command, "--evals", 4, "--pick", "macs<=0.7x", "--pick", "kl<=1000")
    cut = json.loads((out / "search.json").read_text())["evaluations"]
    costs = [evaluation["cost"] / cut[0]["cost"] for evaluation in cut]
    assert refused.code == 1 and len(costs) == 4 and costs[1] < 0.7 < costs[3] < costs[2] < 1
    assert f"No network meets macs<=0.7x; the closest is {costs[3]:.3g}x (evaluation 3)" in refused.err
    assert json.loads((out / "search.json").read_text())["picks"] == [
        {"name": "pick:kl<=1000", "evaluation": 1, "file": "kl-1000"}
    ]
    run_cli(*command, "--evals", 40, "--pick", "macs<=0.7x").ok()
    record = json.loads((out / "search.json").read_text())
    assert record["evaluations"][:4] == cut and record["picks"][0]["evaluation"] == len(record["evaluations"]) - 1
