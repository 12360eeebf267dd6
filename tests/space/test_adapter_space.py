"""`lonas-edge space --adapter`: search spaces for adapters that plain PEFT made, and networks of them."""

import json
import random
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinyModels, TinySource

from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.search_space import read_search_space

ADAPTERS = {
    "q and v": {"r": 16, "target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"r": 4, "target_modules": "all-linear"},
    "rank_pattern": {"r": 8, "rank_pattern": {"v_proj": 4}, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "one layer": {"r": 1, "target_modules": ["up_proj"], "layers_to_transform": [1]},
}
RANKS = {  # elastic ranks by layers that share one, in the first layer that has them
    "q and v": {("q_proj", "v_proj"): (16, 14)},
    "all-linear": {("q_proj", "k_proj", "v_proj"): (4, 3), ("gate_proj", "up_proj"): (4, 3)},
    "rank_pattern": {("q_proj",): (8, 7), ("v_proj",): (4, 3)},
    "one layer": {("up_proj",): (1,)},
}


@pytest.fixture(params=ADAPTERS)
def made(request: pytest.FixtureRequest, tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> TinySource:
    """A plain adapter with the space that the command writes for it."""
    adapter, space = tiny_models.adapter("llama", **ADAPTERS[request.param]), tmp_path / "space.json"
    options = ["--ratios", "1,.75,.5", "--depth", "attention,mlp", "--heads"]
    run_cli("space", "--adapter", adapter, "--model", tiny_models.base("llama"), "--output", space, *options).ok()
    groups = {}
    for group in read_search_space(space).groups:
        if group.kind == "rank":
            groups.setdefault(tuple(module.rpartition(".")[2] for module in group.modules), group.widths)
    assert groups == RANKS[request.param]
    return TinySource("llama", tiny_models.base("llama"), adapter, space)


def test_logits_of_materialized_and_activated_networks(made: TinySource, materialize: Callable, ids: torch.Tensor) -> None:
    """Both equal the oracle: with the first block of each kind removed, MLPs and heads at random, ranks at random."""
    network, draw = load_super_network(made.opened()), random.Random(1)
    blocks = len(read_search_space(made.space).groups) - 2  # the middle layer's attention and MLP come last
    for depth in ([0, 1], [1, 0], [1, 1]):
        widths = [draw.choice(values) for values in made.groups()[:blocks]] + depth
        expected = oracle_logits(made.base, made.adapter, made.space, widths, ids)
        network.activate(widths)
        with torch.no_grad():
            assert (network.model(input_ids=ids).logits - expected).abs().max() < 1e-4
            checkpoint = load_checkpoint(materialize(made, widths))
            assert (checkpoint(input_ids=ids).logits - expected).abs().max() < 1e-4


def test_search_and_export(tiny_models: TinyModels, run_cli: Callable, tmp_path: Path, ids: torch.Tensor) -> None:
    """The way of a newcomer: an adapter on q and v, its space, a search, the picked sub-network."""
    base, adapter = tiny_models.base("llama"), tiny_models.adapter("llama", **ADAPTERS["q and v"])
    lacking = run_cli("export", adapter, "--model", base, "--subnet", "minimal", "--output", tmp_path / "ir")
    assert lacking.code == 1
    command = lacking.err.partition("`lonas-edge ")[2].partition("`")[0]
    space = tmp_path / "space.json"
    assert command == f"space --adapter {adapter} --model {base} --output space.json"
    arguments = shlex.split(command.replace("space.json", str(space)))
    assert run_cli(*arguments).code == 0
    narrowable = {group.kind for group in read_search_space(space).groups if group.kind != "rank" and len(group.widths) > 1}
    assert narrowable == {"block"}  # attention; channels of a plain adapter are not sorted, so its MLPs stay full
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": f"What is {n} plus one?", "output": str(n + 1)} for n in range(30)]))
    source = TinySource("llama", base, adapter, space)
    output, options = tmp_path / "found", ["--cost", "bytes", "--evals", "12", "--pick", "bytes<=0.95x"]
    run_cli("search", *source.arguments(), "--data", data, "--output", output, "--num-samples", "4", *options).ok()
    picked = output / "subnetworks/bytes-0.95x.json"
    run_cli("export", *source.arguments(), "--subnet", picked, "--stage", "checkpoint", "--output", tmp_path / "out").ok()
    widths = list(json.loads(picked.read_text())["widths"].values())
    logits = load_checkpoint(tmp_path / "out", torch.float32)(input_ids=ids).logits
    assert (logits - oracle_logits(base, adapter, space, widths, ids)).abs().max() < 1e-3


def test_ratios_and_removable_attention(tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> None:
    """MLP widths that are asked for do not take away the removable attention blocks; elastic heads do."""
    base, adapter, output = tiny_models.base("llama"), tiny_models.adapter("llama", **ADAPTERS["q and v"]), tmp_path / "s.json"
    for options, mlp, blocks in (
        (("--ratios", "1,.5"), (128, 64), ["model.layers.1.self_attn"]),  # the first and the last layer keep theirs
        (("--ratios", "1,.5", "--heads"), (128, 64), []),
        (("--ratios", "1,.5", "--depth", "mlp"), (128, 64), ["model.layers.1.mlp"]),
        ((), (128,), ["model.layers.1.self_attn"]),
    ):
        run_cli("space", "--adapter", adapter, "--model", base, *options, "--output", output, "--overwrite").ok()
        groups = read_search_space(output).groups
        assert [group.modules for group in groups if group.kind == "block"] == [(block,) for block in blocks]
        widths = [group.widths for group in groups if "model.layers.0.mlp.up_proj" in group.modules]
        assert widths == [mlp], groups


def test_refused(tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> None:
    base, adapter, output = tiny_models.base("llama"), tiny_models.adapter("llama", **ADAPTERS["q and v"]), tmp_path / "s.json"
    for arguments, code, message in (
        ((), 2, "pass --model, or --adapter"),
        (("--adapter", adapter, "--model", base, "--ranks", "32,16"), 1, "rank 32: the adapter has rank 16"),
        (("--adapter", base), 1, "is a base model; pass it as --model"),
    ):
        ran = run_cli("space", *arguments, "--output", output)
        assert (ran.code, output.exists()) == (code, False) and message in ran.err, ran.err
