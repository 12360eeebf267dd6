"""The plan: which groups are searched, whose settings count, and a dry run from configurations alone."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_models import LAYERS, TinySource

import lonas_edge.search.plan
from lonas_edge.network import checkpoints
from lonas_edge.network.heldout import read_held_out
from lonas_edge.search.cost import cost_function
from lonas_edge.search.damage import DamageTable
from lonas_edge.search.dimensions import costs_by_width, find_dimensions
from lonas_edge.search.picks import parse_picks
from lonas_edge.search.seeds import seeds
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.space.search_space import parse_search_space

# what the published files say: nncf_lonas_llama_7b.json and nncf_lonas_bert_base_rte.json
PUBLISHED_LLAMA = {"algorithm": "NSGA2", "num_evals": 200, "population": 8}
PUBLISHED_BERT = {
    "algorithm": "NSGA2",
    "batchnorm_adaptation": {"num_bn_adaptation_samples": 0},
    "num_evals": 1000,
    "population": 40,
    "ref_acc": 0.85,
    "acc_delta": 0.01,
}


def test_bert_s_settings_are_read() -> None:
    width = {"overwrite_groups": [], "overwrite_groups_widths": []}
    section = {"training": {"elasticity": {"width": width}}, "search": PUBLISHED_BERT}
    settings = parse_search_space({"bootstrapNAS": section})[0].search_settings()
    assert (settings.num_evals, settings.population, settings.ref_acc, settings.acc_delta) == (1000, 40, 0.85, 0.01)


def test_a_dry_run_of_llama_7b(
    llama_7b: tuple[Path, Path], published_space: Path, data: Path, run_cli: Callable, tmp_path: Path, monkeypatch
) -> None:
    content = json.loads(published_space.read_text())
    content["bootstrapNAS"]["search"] = PUBLISHED_LLAMA
    space = tmp_path / "space.json"
    space.write_text(json.dumps(content))

    def forbidden(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoints, "open_base", forbidden)
    base, adapter = llama_7b
    source = ["search", adapter, "--model", base, "--nncf-config", space, "--data", data, "--output", tmp_path / "out"]
    ran = run_cli(*source, "--val-set-size", "32", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    assert (plan["groups"], len(plan["searched"]), len(plan["fixed"])) == (96, 32, 64)
    assert plan["networks"] == str(5**32)
    assert (plan["evaluations"], plan["sampler"]["population"]) == (200, 8)
    assert plan["template"] == "lonas", "the published adapters' own"
    steps = {step["name"]: step for step in plan["steps"]}
    assert steps["damage table"]["count"] == 32 * 4 and steps["evaluations"]["count"] == 200
    # half the layers of each of 128 evaluations run, on average
    assert steps["damage table"]["seconds"] / steps["evaluations"]["seconds"] == pytest.approx(
        4 * sum((32 - layer) / 32 for layer in range(32)) / 200, rel=1e-6
    )
    assert plan["seconds"] == pytest.approx(sum(step["seconds"] for step in plan["steps"]))
    assert not (tmp_path / "out").exists()
    told = run_cli(*source, "--val-set-size", "32", "--dry-run")
    assert told.code == 0
    for text in ("32 of 96 groups", "64 stay at their widest", "population 8", "damage table", "in all"):
        assert text in told.out.replace("\n", " ")


@pytest.mark.parametrize(("dtype", "speed"), [("fp32", 1e11), ("bf16", 8e11)])
def test_the_time_of_a_network(
    dtype: str, speed: float, run_cli: Callable, command: Callable, llama: TinySource, data: Path, monkeypatch
) -> None:
    """Its products at 0.4 of this processor's speed, all else at 1.5 times that of fp32."""
    monkeypatch.setattr(lonas_edge.search.plan, "matrix_speed", {"fp32": 1e11, "bf16": 8e11}.__getitem__)
    steps = json.loads(run_cli(*command("--dry-run", "--json", "--torch-dtype", dtype)).out)["steps"]
    lengths = read_held_out(llama.opened(), data, 8, 42, "alpaca").lengths()
    operations = 2 * llama.opened().sizes(llama.opened().unpruned).linear_weights * sum(length // 4 + 1 for length in lengths)
    seconds = operations / (0.4 * speed) + operations / 1.5e11
    assert [step["seconds"] for step in steps if step["name"] == "evaluations"] == [pytest.approx(27 * seconds, rel=0.02)]


def test_options_come_before_the_space_s_settings(run_cli: Callable, command: Callable) -> None:
    plan = json.loads(run_cli(*command("--dry-run", "--json", "--seed", "5", "--mutation-prob", "0.5")).out)
    assert plan["evaluations"] == 27 and plan["sampler"] == {
        "name": "nsga2",
        "population": 4,
        "seed": 5,
        "mutation_prob": 0.5,
        "crossover_prob": 0.9,  # NNCF's default
    }


def test_ranks_are_not_searched(llama: TinySource) -> None:
    source = llama.opened()
    found = find_dimensions(source, ["int8", "int4"])
    assert found.searched == (3, 4, 5) and found.fixed == (0, 1, 2, 6, 7, 8)
    assert found.size == 3**LAYERS * 2
    narrowest = tuple(group.widths[-1] for group in source.space.groups)
    assert found.projected(narrowest) == (8, 8, 8, 64, 64, 64, 8, 8, 8)
    network = (found.projected(narrowest), "int4")
    assert found.parameters(network) == {"group_3": 2, "group_4": 2, "group_5": 2, "weight_format": "int4"}
    assert found.of(found.parameters(network)) == network


def test_seeds(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source, ["int8"])
    cost = cost_function("bytes", source, CostSettings())
    rows = ((), (), (), (0.0, 0.01, 0.02), (0.0, 1.0, 2.0), (0.0, 0.1, 0.2), (), (), ())
    found = seeds(dimensions, 100, DamageTable(rows), cost)
    assert list(found.values())[:3] == ["seed:maximal", "seed:heuristic", "seed:minimal"]
    ladder = [widths for (widths, _), origin in found.items() if origin.startswith("seed:knapsack")]
    assert (8, 8, 8, 64, 128, 128, 8, 8, 8) in ladder, "the group that does the least damage is narrowed first"
    assert (8, 8, 8, 64, 128, 64, 8, 8, 8) in ladder
    assert not any(widths[4] < 128 and widths[3] > 64 for widths in ladder)
    assert len(seeds(dimensions, 4, DamageTable(rows), cost)) <= 5 and len(seeds(dimensions, 100)) == 3


def test_seeds_at_the_picks(llama: TinySource) -> None:
    """The least summed damage under each bound, by trying everything; a pick of another measure than the search's cost, too."""
    source = llama.opened()
    dimensions, space = find_dimensions(source, ["int8"]), source.space
    draw = random.Random(5)
    rows = tuple(
        tuple(sorted(draw.random() for _ in group.widths)) if index in dimensions.searched else ()
        for index, group in enumerate(space.groups)
    )

    def weights(widths: Sequence[int], _weight_format: str) -> float:
        return source.sizes(source.subnetwork(widths)).linear_weights

    def cost(widths: Sequence[int], weight_format: str) -> float:
        return source.sizes(source.subnetwork(widths)).bytes[weight_format]

    networks = {tuple(place) for place in itertools.product(range(3), repeat=3)}
    picks = parse_picks(["weights<=0.95x", "weights<=0.9x", "weights<=0.99x"], ["weights"])
    found = seeds(dimensions, 100, DamageTable(rows), cost, dict.fromkeys(picks, weights))
    whole = weights(dimensions.network([0, 0, 0], "int8")[0], "int8")
    for pick in picks:
        (network,) = [network for network, origin in found.items() if origin == f"seed:pick:{pick.expression}"]
        bound = pick.bound * whole
        under = [levels for levels in networks if weights(dimensions.network(levels, "int8")[0], "int8") <= bound]
        damage = {
            levels: sum(rows[3 + place][level] - rows[3 + place][0] for place, level in enumerate(levels)) for levels in under
        }
        assert weights(network[0], "int8") <= bound
        levels = tuple(dimensions.levels(network[0]))
        assert damage[levels] == pytest.approx(min(damage.values()))


def test_costs_by_width_add_up(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source, ["int8"])
    cost = cost_function("bytes", source, CostSettings())
    rows = costs_by_width(dimensions, cost, "int8")
    assert all(row[-1] == 0 and row[0] > row[1] > 0 for row in rows)
    narrow = cost(*dimensions.network([2, 1, 0], "int8"))
    assert cost(*dimensions.network([0, 0, 0], "int8")) - narrow == rows[0][0] + rows[1][0] - rows[1][1]
