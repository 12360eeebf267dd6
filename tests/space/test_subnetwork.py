"""Sub-networks by name, by seed and from files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.space.search_space import Group, Member, SearchSpace
from lonas_edge.space.subnetwork import Subnetwork, select

WIDTHS = [(32, 28), (100, 90, 80, 70, 60), (7,), (9, 8, 6)]
SPACE = SearchSpace(tuple(Group((Member(f"layer{i}", "base", "node"),), widths) for i, widths in enumerate(WIDTHS)))


@pytest.mark.parametrize(
    ("choice", "widths"),
    [
        ("maximal", (32, 100, 7, 9)),
        ("minimal", (28, 60, 7, 6)),
        ("heuristic", (32, 80, 7, 8)),  # index (n - 1) // 2
        (None, (32, 80, 7, 8)),
    ],
)
def test_names(choice: str | None, widths: tuple[int, ...]) -> None:
    assert select(SPACE, choice).widths == widths


def test_random_is_seeded_and_in_the_space() -> None:
    drawn = [select(SPACE, f"random:{seed}").widths for seed in range(50)]
    assert all(width in group for widths in drawn for width, group in zip(widths, WIDTHS, strict=True))
    assert [{widths[i] for widths in drawn} for i in range(4)] == [set(widths) for widths in WIDTHS]
    assert drawn == [select(SPACE, f"random:{seed}").widths for seed in range(50)]


@pytest.mark.parametrize("choice", ["random:", "random:x", "random:1.5"])
def test_random_without_a_whole_seed(choice: str) -> None:
    with pytest.raises(LonasEdgeError, match="random:SEED"):
        select(SPACE, choice)


def test_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"widths": [28, 90, 7, 6]}))
    assert select(SPACE, str(path)) == Subnetwork((28, 90, 7, 6), "found.json")
    Subnetwork((28, 90, 7, 6), "mine").record(SPACE).write(path)
    assert json.loads(path.read_text()) == {
        "schema": "lonas-edge/subnetwork/2",
        "widths": [28, 90, 7, 6],
        "name": "mine",
        "search_space": SPACE.hash,
        "found": None,
    }
    assert select(SPACE, str(path)) == Subnetwork((28, 90, 7, 6), "mine")


def test_what_other_programs_write_beside_the_widths_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"widths": [28, 90, 7, 6], "name": "", "search_space": None, "accuracy": {"boolq": 62.5}}))
    assert select(SPACE, str(path)) == Subnetwork((28, 90, 7, 6), "found.json")


def test_a_file_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"schema": "lonas-edge/subnetwork/3", "layers": []}))
    with pytest.raises(LonasEdgeError, match=r"found\.json: written by a newer lonas-edge .*subnetwork/3"):
        select(SPACE, str(path))


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from lonas_edge.space.subnetwork import *; SubnetworkRecord.from_json({'widths': [1]}, 'here')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ({"widths": [32, 100]}, ["2 widths; the search space has 4 groups"]),
        ({"widths": [31, 100, 7, 5]}, ["group 0 (layer0, …): width 31 is not one of [32, 28]", "group 3", "width 5"]),
        ({"widths": [32.0, 100, "7", 9]}, ["widths.0", "32.0", "widths.2", "'7'", '{"widths": [w0, w1, …]}']),
        ({"widths": [32, 100, 7, 9], "search_space": "0" * 64}, ["written for search space 000000000000"]),
        ({"widths": [32, 100, 7, 9], "search_space": 5}, ["search_space", "5"]),
        ({"widths": [32, 100], "search_space": "0" * 64}, ["2 widths", "written for"]),
        ({"widths": "all"}, ["widths: ", "'all'"]),
        ({"width": []}, ["widths: Field required"]),
        ([32, 100, 7, 9], ["expected a JSON object, found list"]),
        ({"widths": [10**300, 100, 7, 9]}, ["group 0", "is not one of [32, 28]"]),
        ({"widths": []}, ["0 widths"]),
        ({"widths": [32, 100, 7, None]}, ["widths.3"]),
        ({"widths": [32, 100, 7, 6], "name": "a\n# b"}, ["name: expected at most 200 printable characters"]),
        ({"widths": [32, 100, 7, 6], "name": "a" * 201}, ["name: expected at most 200 printable characters"]),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, content: Any, faults: list[str]) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError) as caught:
        select(SPACE, str(path))
    assert str(path) in str(caught.value)
    assert all(fault in str(caught.value) for fault in faults)


def test_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("{")
    with pytest.raises(LonasEdgeError, match="not readable as JSON"):
        select(SPACE, str(tmp_path / "found.json"))


def test_neither_name_nor_file() -> None:
    with pytest.raises(LonasEdgeError, match="neither a name"):
        select(SPACE, "largest")


def test_plain_lora_has_the_maximal_network_only() -> None:
    assert select(SearchSpace(), None) == select(SearchSpace(), "maximal") == Subnetwork((), "maximal")
    with pytest.raises(LonasEdgeError, match="--nncf-config"):
        select(SearchSpace(), "heuristic")
