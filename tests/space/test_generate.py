"""Generated search spaces: the published one for LLaMA-7B, and readable ones for every family."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_models import CASES, TinyModels, block_path, families, has_heads
from transformers import AutoConfig, AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import bind
from lonas_edge.space.generate import generate_space
from lonas_edge.space.search_space import parse_search_space, read_search_space


def test_equals_the_published_one(run_cli, llama_7b: tuple[Path, Path], published_space: Path, tmp_path: Path) -> None:
    assert run_cli("space", "--model", llama_7b[0], "--output", tmp_path / "space.json").code == 0
    published, generated = (
        json.loads(path.read_text())["bootstrapNAS"]["training"]["elasticity"]["width"]
        for path in (published_space, tmp_path / "space.json")
    )
    assert generated["overwrite_groups"] == published["overwrite_groups"]
    assert generated["overwrite_groups_widths"] == published["overwrite_groups_widths"]


@pytest.mark.parametrize("case", families())
def test_every_node_is_a_linear_layer_of_the_model(case: str, tiny_models: TinyModels) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CASES[case]))
    content = json.loads(tiny_models.space(case).read_text())
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    for node in (node for group in groups for node in group):
        parts = re.findall(r"(\w+)\[(\w+)\]", node)
        assert parts[:2] == [("LoraModel", "base_model"), (type(model).__name__, "model")]
        module = model
        for class_name, name in parts[2:]:
            if class_name in ("ModuleDict", "NNCFUserSelfLinear"):
                break
            module = module.get_submodule(name)
            assert type(module).__name__ == class_name, node
        assert type(module) is torch.nn.Linear


@pytest.mark.parametrize("case", families(*filter(has_heads, CASES)))
def test_heads(case: str) -> None:
    """At the shares of the MLP, in whole groups of query heads with their key-value head; behind all other groups."""
    architecture = Architecture.from_config(AutoConfig.for_model(**CASES[case]), case)
    content = generate_space(architecture, (1, 0.75, 0.5), (8,), heads=True)
    space = parse_search_space(content, case)
    channels = 4 * (CASES[case].get("head_dim") or 16)
    expected = (channels, channels * 3 // 4, channels // 2) if "neox" in case else (channels, channels // 2)
    assert [group.widths for group in space.groups[9:]] == [expected] * 3
    elasticity = bind(architecture, space, case)
    plain = generate_space(architecture, (1, 0.75, 0.5), (8,))
    assert parse_search_space(plain, case).groups == space.groups[:9]
    reader = f"{block_path(case, 1, 'attention')}.{'dense' if 'neox' in case else 'o_proj'}"
    assert elasticity.in_group[reader] == 10


def test_one_key_value_head_for_all() -> None:
    config = AutoConfig.for_model(**{**CASES["llama"], "num_key_value_heads": 1})
    with pytest.raises(LonasEdgeError, match="all heads share one key-value head"):
        generate_space(Architecture.from_config(config, "m"), heads=True)


def test_shipped_spaces_are_readable() -> None:
    for path in (Path(__file__).parents[2] / "nncf_config").glob("*.json"):
        assert read_search_space(path).groups, path


@pytest.mark.parametrize(("model", "file"), [("BLOOMZ 7B1", "bloomz_7b.json"), ("Phi-4-mini", "phi4_mini.json")])
def test_shipped_spaces_are_what_the_command_writes(model: str, file: str, run_cli, tmp_path: Path) -> None:
    """For the published configuration of the model."""
    root = Path(__file__).parents[2]
    (tmp_path / "base").mkdir()
    published = json.loads((root / "tests/data/published_configs.json").read_text())[model]
    (tmp_path / "base/config.json").write_text(json.dumps(published))
    assert run_cli("space", "--model", tmp_path / "base", "--output", tmp_path / "space.json").code == 0
    assert (tmp_path / "space.json").read_bytes() == (root / "nncf_config" / file).read_bytes()


def test_widths_are_whole_and_sorted() -> None:
    architecture = Architecture.from_config(AutoConfig.for_model(**{**CASES["llama"], "intermediate_size": 100}), "llama")
    content = generate_space(architecture, (0.5, 1, 0.333), (4, 8))
    widths = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    assert widths[0] == [8, 4]
    assert widths[3] == [100, 50, 33]


@pytest.mark.parametrize(
    ("full", "hidden", "widths"),
    [
        (4864, 896, [4864, 3584, 2432, 1152]),  # groups of 128: 38, 28, 19 and 9
        (1536, 576, [1536, 1152, 768, 384]),  # of 192
        (320, 64, [320, 192, 128]),  # of 64; a quarter has one group alone, a half two
        (100, 64, [100, 75, 50, 25]),  # no group size divides 100
    ],
)
def test_widths_keep_the_int4_groups(full: int, hidden: int, widths: list[int]) -> None:
    shapes = {"intermediate_size": full, "hidden_size": hidden, "num_attention_heads": hidden // 32, "head_dim": 32}
    config = AutoConfig.for_model(**{**CASES["llama"], **shapes, "num_key_value_heads": 1})
    config.num_key_value_heads = hidden // 32
    content = generate_space(Architecture.from_config(config, "llama"), (1, 0.75, 0.5, 0.25), grouped=True)
    assert content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][3] == widths


@pytest.mark.parametrize(
    ("ratios", "ranks", "error"),
    [
        ((1.5, -0.5), (8,), "ratio 1.5: expected more than 0 and at most 1"),
        ((1.5, -0.5), (0,), "rank 0: expected at least 1"),
        ((1, 0.9999, 1), (8,), "must differ"),
        ((1,), (8, 8), "ranks must differ"),
        ((0.001,), (8,), "at least 1"),
    ],
)
def test_impossible_ones_are_refused(ratios, ranks, error) -> None:
    architecture = Architecture.from_config(AutoConfig.for_model(**CASES["llama"]), "llama")
    with pytest.raises(LonasEdgeError, match=error):
        generate_space(architecture, ratios, ranks)
