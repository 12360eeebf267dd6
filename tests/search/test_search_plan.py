"""The plan: searched groups, settings, the warm start."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_models import LAYERS, TinySource

from lonas_edge.network.adapters import CONFIG
from lonas_edge.search.cost import CostSettings, cost_function
from lonas_edge.search.dimensions import costs_by_width, find_dimensions
from lonas_edge.search.picks import parse_picks
from lonas_edge.search.plan import SearchOptions, make_plan
from lonas_edge.search.sensitivity import SensitivityTable
from lonas_edge.search.warm_start import warm_start
from lonas_edge.space.search_space import parse_search_space


def test_published_settings_of_bert() -> None:
    """As of nncf_lonas_bert_base_rte.json; unknown settings are ignored."""
    published = {"algorithm": "NSGA2", "batchnorm_adaptation": {"num_bn_adaptation_samples": 0}, "num_evals": 1000}
    published |= {"population": 40, "ref_acc": 0.85, "acc_delta": 0.01}
    width = {"overwrite_groups": [], "overwrite_groups_widths": []}
    section = {"training": {"elasticity": {"width": width}}, "search": published}
    settings = parse_search_space({"bootstrapNAS": section})[0].search_settings()
    assert (settings.population, settings.ref_acc, settings.acc_delta) == (40, 0.85, 0.01)


def test_nsga2_is_set_by_the_search_space(llama_copy: TinySource, data: Path, tmp_path: Path) -> None:
    """Population and probabilities; the number of evaluations and the seed are options."""
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["search"] = {"population": 7, "mutation_prob": 0.5, "num_evals": 900, "seed": 3}
    llama_copy.space.write_text(json.dumps(content))
    options = SearchOptions(data, tmp_path / "out", num_prompts=8, prompt="alpaca")
    plan = make_plan(llama_copy.opened(), options)
    settings = plan.sampler_settings
    assert (settings.population, settings.mutation_prob, settings.crossover_prob, settings.seed) == (7, 0.5, 0.9, 0)
    assert (plan.options.evals, plan.cost, plan.timed) == (80, "tpot", True)


def test_an_adapter_on_few_modules(llama_copy: TinySource, data: Path, run_cli: Callable, tmp_path: Path) -> None:
    """A plain LoRA on q_proj and v_proj: MLP widths without adapters are searched, ranks are not."""
    from safetensors.torch import load_file, save_file

    config = llama_copy.adapter / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj", "v_proj"]}))
    file = llama_copy.adapter / "adapter_model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if "q_proj" in name or "v_proj" in name}
    save_file(tensors, file)
    content = json.loads(llama_copy.space.read_text())
    width = content["bootstrapNAS"]["training"]["elasticity"]["width"]
    keep = [index for index, values in enumerate(width["overwrite_groups_widths"]) if max(values) > 8]
    for name in ("overwrite_groups", "overwrite_groups_widths"):
        width[name] = [width[name][index] for index in keep]
    llama_copy.space.write_text(json.dumps(content))
    command = ["search", *llama_copy.arguments(), "--data", data, "--num-prompts", 4, "--output", tmp_path / "out"]
    ran = run_cli(*command, "--cost", "macs", "--evals", 5, "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert all(record["sensitivity"]) and record["fixed"] == []


def test_ranks_are_not_searched(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source)
    assert dimensions.searched == (3, 4, 5) and dimensions.fixed == (0, 1, 2, 6, 7, 8)
    assert dimensions.size == 3**LAYERS
    narrowest = tuple(group.widths[-1] for group in source.space.groups)
    projected = dimensions.projected(narrowest)
    assert projected == (8, 8, 8, 64, 64, 64, 8, 8, 8)
    assert dimensions.parameters(projected) == {"group_3": 2, "group_4": 2, "group_5": 2}
    assert dimensions.of(dimensions.parameters(projected)) == projected


def test_warm_start(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source)
    cost = cost_function("bytes", source, CostSettings())
    table = SensitivityTable(((), (), (), (0.0, 0.01, 0.02), (0.0, 1.0, 2.0), (0.0, 0.1, 0.2), (), (), ()))
    found = warm_start(dimensions, 100, table, cost)
    assert list(found.values())[:3] == [f"warm-start:{name}" for name in ("maximal", "heuristic", "minimal")]
    rungs = [widths for widths, origin in found.items() if origin.startswith("warm-start:knapsack")]
    assert (8, 8, 8, 64, 128, 128, 8, 8, 8) in rungs, "the least sensitive group is narrowed first"
    assert (8, 8, 8, 64, 128, 64, 8, 8, 8) in rungs
    assert not any(widths[4] < 128 and widths[3] > 64 for widths in rungs)
    assert len(warm_start(dimensions, 4, table, cost)) <= 5 and len(warm_start(dimensions, 100, None, cost)) == 3


def test_warm_start_at_the_picks(llama: TinySource) -> None:
    """The least total sensitivity under each bound, by trying everything; of another measure than the search's cost, too."""
    source = llama.opened()
    dimensions, space = find_dimensions(source), source.space
    draw = random.Random(5)
    rows = tuple(
        tuple(sorted(draw.random() for _ in group.widths)) if index in dimensions.searched else ()
        for index, group in enumerate(space.groups)
    )

    def weights(widths: Sequence[int]) -> float:
        return source.sizes(source.subnetwork(widths)).linear_weights

    picks = parse_picks(["weights<=0.95x", "weights<=0.9x", "weights<=0.99x"], ["weights"])
    cost = cost_function("bytes", source, CostSettings())
    found = warm_start(dimensions, 100, SensitivityTable(rows), cost, dict.fromkeys(picks, weights))
    for pick in picks:
        (network,) = [widths for widths, origin in found.items() if origin == f"warm-start:pick:{pick.expression}"]
        bound = pick.bound * weights(dimensions.maximal)
        every = itertools.product(range(3), repeat=3)
        under = [levels for levels in every if weights(dimensions.widths(levels)) <= bound]
        totals = {levels: sum(rows[3 + place][level] for place, level in enumerate(levels)) for levels in under}
        assert totals[tuple(dimensions.levels(network))] == pytest.approx(min(totals.values()))


def test_costs_by_width_add_up(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source)
    cost = cost_function("bytes", source, CostSettings())
    rows = costs_by_width(dimensions, cost)
    assert all(row[-1] == 0 and row[0] > row[1] > 0 for row in rows)
    narrow = cost(dimensions.widths([2, 1, 0]))
    assert cost(dimensions.maximal) - narrow == rows[0][0] + rows[1][0] - rows[1][1]
