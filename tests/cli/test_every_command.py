"""A family through every command: space, train, inspect, export, eval, bench; nothing of it is known outside its own file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from openvino_models import ir_logits
from oracle import oracle_logits
from tiny_models import LAYERS, TinyModels, mlp_names

DATASETS = Path(__file__).parents[1] / "evaluate/data"
RANKS_AND_WIDTHS = [[8, 6]] * LAYERS + [[128, 96, 64]] * LAYERS + [[8, 6]] * LAYERS


@pytest.mark.slow
@pytest.mark.parametrize("case", ["phi3-tied", "bloom-tied"])
def test_every_command(case: str, run_cli: Callable, tiny_models: TinyModels, ids: torch.Tensor, tmp_path: Path) -> None:
    base, space, adapter, exported = tiny_models.base(case), tmp_path / "space.json", tmp_path / "adapter", tmp_path / "int8"
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": f"the {n}?", "output": "the end"} for n in range(16)]))

    def run(*arguments: object) -> str:
        ran = run_cli(*arguments).ok()
        return ran.out

    run("space", "--model", base, "--output", space, "--ranks", "8,6", "--ratios", "1,.75,.5")
    elastic = json.loads(space.read_text())["bootstrapNAS"]["training"]["elasticity"]["width"]
    assert elastic["overwrite_groups_widths"] == RANKS_AND_WIDTHS

    train = ["--model", base, "--data", data, "--nncf-config", space, "--output", adapter, "--rank", "8", "--alpha", "16"]
    run("train", *train, "--steps", "4", "--batch-size", "4", "--lr", "3e-2")
    record = json.loads((adapter / "training.json").read_text())
    assert record["losses"][-1]["loss"] > 0 and record["reordered"]

    sizes = json.loads(run("inspect", adapter, "--subnet", "minimal", "--json"))
    assert sizes["subnetwork"]["parameters"] < sizes["unpruned"]["parameters"]
    assert [group["width"] for group in sizes["groups"]] == [values[-1] for values in RANKS_AND_WIDTHS]
    assert any(mlp_names(case)[0][0] in module for module in sizes["groups"][LAYERS]["modules"])

    run("export", adapter, "--subnet", "minimal", "--weight-format", "fp32", "--output", tmp_path / "fp32")
    expected = oracle_logits(base, adapter, space, [values[-1] for values in RANKS_AND_WIDTHS], ids)
    assert (ir_logits(tmp_path / "fp32", ids) - expected).abs().max() < 1e-3
    plain = oracle_logits(base, None, space, [values[-1] for values in RANKS_AND_WIDTHS], ids)
    assert (plain - expected).abs().max() > 1e-2, "four steps changed nothing"

    run("export", adapter, "--subnet", "minimal", "--output", exported)
    asked = ["--datasets", DATASETS, "--tasks", "ARC-Easy", "--protocol", "option-text", "--json"]
    report = json.loads(run("eval", exported, adapter, "--subnet", "minimal", *asked))
    assert [target["kind"] for target in report["targets"]] == ["ir", "torch"]

    arms = ["--variants", "lora,unpruned", "--adapter", adapter]
    short = ["--prompt-len", "8", "--new-tokens", "4", "--rounds", "2"]
    bench = json.loads(run("bench", exported, *arms, *short, "--json"))
    assert [variant["name"] for variant in bench["variants"]] == ["subnet", "lora", "unpruned"] and not bench["failures"]
