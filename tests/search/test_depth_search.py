"""Searches over widths and blocks: the tiny LLaMA's networks can all be evaluated without it."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_models import TinyModels, TinySource

from lonas_edge.bench.latency import Latency
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search.damage import DamageTable, measure_damage
from lonas_edge.search.dimensions import find_dimensions
from lonas_edge.search.latency_table import format_table
from lonas_edge.search.picks import parse_picks
from lonas_edge.search.seeds import seeds
from lonas_edge.search.uniform import find_kinds, uniform_networks
from lonas_edge.space.elasticity import Elasticity


@pytest.fixture
def deep(tiny_models: TinyModels) -> TinySource:
    return tiny_models.deep_source("llama")


def distinct(elasticity: Elasticity, groups: list[list[int]]) -> set[tuple[int, ...]]:
    """Every network once: the MLP width of a layer without an MLP decides nothing."""
    choices = [values if max(values) != 8 else values[:1] for values in groups]
    found = set()
    for widths in itertools.product(*choices):
        plain = list(widths)
        for layer, block in ((1, 10), (2, 11)):  # groups 10 and 11 leave out the MLPs of layers 1 and 2
            plain[3 + layer] = plain[3 + layer] if widths[block] else 128
        assert elasticity.plain(widths) == tuple(plain)
        found.add(tuple(plain))
    return found


def test_the_front_of_all_networks(run_cli: Callable, deep: TinySource, data: Path, tmp_path: Path) -> None:
    command = ["search", *deep.arguments(), "--data", str(data), "--output", str(tmp_path / "out"), "--cost", "bytes"]
    command += ["--val-set-size", "8", "--prompt", "alpaca", "--evals", "300", "--population", "8", "--pick", "bytes<=0.8x"]
    ran = run_cli(*command, "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    source = deep.opened()
    networks = distinct(source.elasticity, deep.groups())
    assert find_dimensions(source, ["int8"]).size == len(networks) == len(record["evaluations"])
    found = {tuple(one["widths"]): (one["quality"], one["cost"]) for one in record["evaluations"]}
    assert len(record["evaluations"]) == len(found), "each once"
    assert found.keys() <= networks
    batches = read_held_out(source, data, 8, 0, "alpaca").batches(load_tokenizer(deep.base))
    kl = dict(zip(sorted(networks), load_super_network(source).kl(sorted(networks), batches), strict=True))
    assert all(quality == pytest.approx(kl[widths], abs=1e-5) for widths, (quality, _) in found.items())
    under = [
        widths
        for widths in networks
        if source.sizes(widths).bytes["int8_sym"] <= 0.8 * source.sizes(source.elasticity.maximal).bytes["int8_sym"]
    ]
    best = record["evaluations"][record["picks"][0]["evaluation"]]
    assert best["quality"] == pytest.approx(min(kl[widths] for widths in under), abs=1e-4)
    assert 0 in best["widths"], "the narrowest MLPs alone are not that small"


@pytest.mark.parametrize("case", ["llama", "neox", "gemma3", "bloom"])
def test_damage_of_blocks(case: str, tiny_models: TinyModels, data: Path) -> None:
    source = tiny_models.deep_source(case)
    opened, groups = source.opened(), source.groups()
    network = load_super_network(opened)
    batches = read_held_out(opened, data, 6, 0, "alpaca").batches(load_tokenizer(source.base))
    searched = find_dimensions(opened, ["int8"]).searched
    assert searched == (3, 4, 5, 9, 10, 11)
    table = measure_damage(network, batches, network.reference(batches), searched)
    maximal = [values[0] for values in groups]
    for group in searched:
        alone = [[*maximal[:group], value, *maximal[group + 1 :]] for value in groups[group]]
        assert table.rows[group] == pytest.approx(network.kl(alone, batches), rel=1e-3, abs=1e-5)


def test_latency_adds_up(deep: TinySource) -> None:
    """Each kind of blocks has a measured network without any of them; what one costs is its share."""
    source = deep.opened()
    kinds = {kind.name: kind for kind in find_kinds(source)}
    assert set(kinds) == {"mlp.gate_proj, mlp.up_proj", "self_attn", "mlp, self_attn", "mlp"}
    assert [kinds[name].layers for name in ("self_attn", "mlp, self_attn", "mlp")] == [{9: 1}, {10: 1}, {11: 1}]
    networks = uniform_networks(source, find_kinds(source))
    assert networks["self_attn", 0][9:] == (0, 1, 1)
    saved = {"mlp.gate_proj, mlp.up_proj": 0.3, "self_attn": 0.2, "mlp, self_attn": 0.5, "mlp": 0.4}

    def latency(name: str, width: int) -> Latency:
        narrow = (128 - width) / 64 if width > 1 else 1 - width
        return Latency(ttft=(10 - saved[name] * narrow) / 1e3, tpot=(1 - saved[name] * narrow / 10) / 1e3)

    table = format_table(source, find_kinds(source), {one: latency(*key) for key, one in networks.items()}, {})

    def ttft(mlp: list[int], depth: list[int]) -> float:
        return table.predict("ttft", find_kinds(source), source.elasticity.plain([8] * 3 + mlp + [8] * 3 + depth))

    assert ttft([128, 128, 128], [1, 1, 1]) == pytest.approx(10)
    assert ttft([64, 128, 128], [0, 1, 1]) == pytest.approx(10 - 0.1 - 0.2)
    assert ttft([128, 64, 96], [1, 0, 0]) == pytest.approx(10 - 0.5 - 0.4)  # widths that are left out save nothing more


@pytest.mark.parametrize("share", [0.95, 0.85, 0.75, 0.7, 0.65])
def test_a_pick_is_solved_where_blocks_hold_widths(share: float, deep: TinySource) -> None:
    """The least summed damage under a bound, by trying every network; a width inside a block that is left out saves nothing."""
    source, groups = deep.opened(), deep.groups()
    dimensions, draw = find_dimensions(source, ["int8"]), random.Random(3)
    rows = tuple(
        (0.0, *sorted(draw.random() for _ in values[1:])) if index in dimensions.searched else ()
        for index, values in enumerate(groups)
    )
    table = DamageTable(rows)

    def cost(widths: Sequence[int], weight_format: str) -> float:
        return source.sizes(widths).bytes[weight_format]

    def damage(widths: Sequence[int]) -> float:
        return table.predicted([values.index(width) for values, width in zip(groups, widths, strict=True)])

    (pick,) = parse_picks([f"bytes<={share}x"], ["bytes"])
    found = seeds(dimensions, 100, table, cost, {pick: cost})
    (chosen,) = [widths for (widths, _), origin in found.items() if origin == f"seed:pick:{pick.expression}"]
    bound = share * cost(source.elasticity.maximal, "int8")
    under = [widths for widths in distinct(source.elasticity, groups) if cost(widths, "int8") <= bound]
    assert cost(chosen, "int8") <= bound
    assert damage(chosen) == pytest.approx(min(map(damage, under)), rel=1e-6)
