"""Sub-networks by name, by seed and from files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CASES, TinyModels
from transformers import AutoConfig

from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import Group, Member, SearchSpace
from lonas_edge.space.selection import SubnetworkRecord, select
from lonas_edge.space.subnetwork import Subnetwork, unpruned

MLP = [Member(f"model.layers.1.mlp.{name}_proj", "base", "node") for name in ("gate", "up")]
GROUPS = (
    Group((Member("model.layers.0.self_attn.q_proj", "lora_A", "node"),), (8, 6)),
    Group(tuple(MLP), (128, 96, 64, 48, 32)),
    Group((Member("model.layers.2.mlp.down_proj", "lora_A", "node"),), (7,)),
    Group((Member("model.layers.2.mlp", "block", "model.layers.2.mlp"),), (1, 0)),
)
SPACE = SearchSpace(GROUPS)
ARCHITECTURE = Architecture.from_config(AutoConfig.for_model(**CASES["llama"]), "llama")
ELASTICITY = bind(ARCHITECTURE, SPACE, "space.json")
NAMES = ["layers.0.self_attn.rank", "layers.1.mlp.width", "layers.2.mlp.rank", "layers.2.mlp"]
WIDTHS = (6, 96, 7, 0)
NAMED = dict(zip(NAMES, WIDTHS, strict=True))


@pytest.mark.parametrize(
    ("choice", "widths"),
    [
        ("maximal", (8, 128, 7, 1)),
        ("minimal", (6, 32, 7, 0)),
        ("heuristic", (8, 64, 7, 1)),  # index (n - 1) // 2
        (None, (8, 64, 7, 1)),
    ],
)
def test_names(choice: str | None, widths: tuple[int, ...]) -> None:
    assert select(ELASTICITY, choice).widths == widths


def test_random_is_seeded_and_in_the_space() -> None:
    drawn = [select(ELASTICITY, f"random:{seed}").widths for seed in range(60)]
    assert [{widths[i] for widths in drawn} for i in range(4)] == [set(group.widths) for group in GROUPS]
    assert drawn == [select(ELASTICITY, f"random:{seed}").widths for seed in range(60)]


def test_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    SubnetworkRecord.of(Subnetwork(ELASTICITY, WIDTHS, "mine")).write(path)
    assert json.loads(path.read_text()) == {
        "schema": "lonas-edge/subnetwork/1",
        "widths": NAMED,
        "name": "mine",
        "search_space": SPACE.hash,
        "origin": None,
    }
    assert select(ELASTICITY, str(path)) == Subnetwork(ELASTICITY, WIDTHS, "mine")


def test_names_hold_in_a_space_with_another_order_of_groups(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    SubnetworkRecord.of(Subnetwork(ELASTICITY, WIDTHS, "mine")).write(path)
    turned = bind(ARCHITECTURE, replace(SPACE, groups=GROUPS[::-1]), "space.json")
    assert select(turned, str(path)).widths == WIDTHS[::-1]
    assert select(turned, str(path)).removed == ("model.layers.2.mlp",)


def test_a_list_with_the_hash_is_read(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"widths": WIDTHS, "search_space": SPACE.hash, "accuracy": {"boolq": 62.5}}))
    assert select(ELASTICITY, str(path)) == Subnetwork(ELASTICITY, WIDTHS, "found.json")
    assert not [w for w in recwarn if w.category is LonasEdgeWarning]


def test_a_list_with_neither_names_nor_hash_warns(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"widths": WIDTHS}))
    with pytest.warns(LonasEdgeWarning, match=r"found\.json: the widths name neither their groups nor a search space"):
        assert select(ELASTICITY, str(path)).widths == WIDTHS


def test_group_names(tiny_models: TinyModels) -> None:
    """Readable, and by layer where two groups of one module would share a name."""

    def names(source: Any) -> tuple[str, ...]:
        opened: Elasticity = source.opened().elasticity
        return opened.group_names

    assert names(tiny_models.heads_source("llama"))[::3] == (
        "layers.0.self_attn.rank",
        "layers.0.mlp.width",
        "layers.0.mlp.rank",
        "layers.0.self_attn.width",
        "layers.0.self_attn",
    )
    assert names(tiny_models.deep_source("llama"))[10] == "layers.1.self_attn+layers.1.mlp"
    assert names(tiny_models.source("neox"))[:1] == ("layers.0.attention.rank",)
    assert names(tiny_models.source("bloom"))[:1] == ("layers.0.self_attention.rank",)
    ranks = tuple(Group((Member(f"model.layers.0.self_attn.{name}_proj", "lora_A", "node"),), (8, 6)) for name in "qv")
    expected = ("layers.0.self_attn.q_proj.rank", "layers.0.self_attn.v_proj.rank")
    assert bind(ARCHITECTURE, SearchSpace(ranks), "space.json").group_names == expected


def test_equal_networks_have_equal_canonical_widths() -> None:
    narrow = Subnetwork(ELASTICITY, (6, 96, 7, 0))
    assert narrow.canonical == (6, 96, 7, 0)
    inside = bind(ARCHITECTURE, SearchSpace((replace(GROUPS[2], widths=(8, 7)), GROUPS[3])), "space.json")
    assert Subnetwork(inside, (7, 0)).canonical == Subnetwork(inside, (8, 0)).canonical == (8, 0)
    assert len({Subnetwork(inside, (7, 0)), Subnetwork(inside, (7, 0)), Subnetwork(inside, (7, 1))}) == 2


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        ({"widths": [8, 128], "search_space": SPACE.hash}, ["2 widths; the search space has 4 groups"]),
        ({"widths": [9, 128, 7, 5]}, ["layers.0.self_attn.rank: 9 is not one of [8, 6]", "layers.2.mlp: 5 is not"]),
        ({"widths": {"layers.0.self_attn.rank": 8}}, ["layers.1.mlp.width: missing in the file"]),
        ({"widths": NAMED | {"layers.7.mlp": 0}}, ["layers.7.mlp: not a group of the search space"]),
        ({"widths": [8, 128, 7, 1], "search_space": "0" * 64}, ["written for search space 000000000000"]),
        ({"width": []}, ["widths: Field required"]),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, content: Any, errors: list[str]) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError) as caught:
        select(ELASTICITY, str(path))
    assert str(path) in str(caught.value)
    assert all(error in str(caught.value) for error in errors), str(caught.value)


@pytest.mark.parametrize(("choice", "message"), [("random:x", "random:SEED"), ("largest", "neither a name")])
def test_no_such_sub_network(choice: str, message: str) -> None:
    with pytest.raises(LonasEdgeError, match=message):
        select(ELASTICITY, choice)


def test_plain_lora_has_the_maximal_network_only() -> None:
    plain = unpruned(ARCHITECTURE).elasticity
    assert select(plain, None) == select(plain, "maximal") == Subnetwork(plain, (), "maximal")
    with pytest.raises(LonasEdgeError, match="--nncf-config"):
        select(plain, "heuristic")
