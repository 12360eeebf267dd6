"""`lonas-edge space --depth`: which blocks are offered."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bert import TinyBert
from tiny_models import TinyModels

from lonas_edge.space.search_space import read_search_space


def test_blocks_of_the_inner_layers(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    run_cli("space", "--model", tiny_models.base("neox"), "--output", tmp_path / "s.json", "--depth", "mlp,attention").ok()
    content = json.loads((tmp_path / "s.json").read_text())
    elastic = content["bootstrapNAS"]["training"]["elasticity"]
    assert elastic["lonas_edge"] == {"version": 1, "blocks": [["gpt_neox.layers.1.attention"], ["gpt_neox.layers.1.mlp"]]}
    stage = content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]
    assert stage["train_dims"] == ["width", "depth"]
    assert read_search_space(tmp_path / "s.json").has_blocks


@pytest.mark.parametrize(
    ("case", "kinds", "told"),
    [
        ("bert", "attention,mlp", "--depth attention,mlp: expected layer for bert"),
        ("bert", "mlp,layer", "--depth mlp: expected layer for bert"),
        ("llama", "mamba", "--depth mamba: expected attention,mlp for llama"),
        ("llama", "layer,mlp", "a layer has all blocks; name layer or the others"),
    ],
)
def test_kinds_of_another_family(
    case: str, kinds: str, told: str, run_cli: Callable, tiny_bert: TinyBert, tiny_models: TinyModels, tmp_path: Path
) -> None:
    base = tiny_bert.base() if case == "bert" else tiny_models.base(case)
    ran = run_cli("space", "--model", base, "--output", tmp_path / "s.json", "--depth", kinds)
    assert ran.code == 1 and told in ran.err and str(base) in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "s.json").exists()
