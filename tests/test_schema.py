"""Records on disk: what is read back, migrated, or refused, and with what words."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.schema import Migration, Record


@dataclass(frozen=True)
class Part:
    """A part of a record."""

    size: int
    shares: tuple[float, ...] = ()


def _first(content: dict[str, Any]) -> dict[str, Any]:
    content["part"]["size"] = int(content["part"].pop("length"))
    return content


def _second(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "parts": {}}


@dataclass(frozen=True)
class Sample(Record):
    """A record of version 3. Version 1 called a part's size its length, a text; version 2 had no `parts`."""

    NAME: ClassVar[str] = "sample"
    VERSION: ClassVar[int] = 3
    MIGRATIONS: ClassVar[dict[int, Migration]] = {1: _first, 2: _second}
    AGAIN: ClassVar[str] = "Sample it again."
    part: Part
    parts: dict[str, Part]
    title: str | None = None
    kind: Part | None = None


@dataclass(frozen=True)
class Forgetful(Record):
    """A record whose first version is no longer read."""

    NAME: ClassVar[str] = "forgetful"
    VERSION: ClassVar[int] = 3
    MIGRATIONS: ClassVar[dict[int, Migration]] = {2: _second}
    parts: dict[str, Part]


SAMPLE = Sample(Part(3, (0.5, 1.0)), {"a": Part(1)}, "ä")
JSON = {
    "schema": "lonas-edge/sample/3",
    "part": {"size": 3, "shares": [0.5, 1.0]},
    "parts": {"a": {"size": 1, "shares": []}},
    "title": "ä",
    "kind": None,
}


@pytest.fixture
def refused(tmp_path: Path) -> Any:
    """Reads JSON that is wrong, as a file; returns the error's lines after the file's name."""

    def read(content: Any, record: type[Record] = Sample) -> list[str]:
        path = tmp_path / "sample.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(LonasEdgeError) as caught:
            record.read(path)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ").splitlines()

    return read


def test_written_and_read_back(tmp_path: Path) -> None:
    SAMPLE.write(tmp_path / "sample.json")
    assert json.loads((tmp_path / "sample.json").read_text()) == JSON
    assert next(iter(json.loads((tmp_path / "sample.json").read_text()))) == "schema"
    assert Sample.read(tmp_path / "sample.json") == SAMPLE
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


def test_what_has_a_default_may_be_missing() -> None:
    content = {"schema": "lonas-edge/sample/3", "part": {"size": 3}, "parts": {}}
    assert Sample.from_json(content, "here") == Sample(Part(3), {})


def test_an_integer_is_a_number() -> None:
    content = {**JSON, "part": {"size": 3, "shares": [1, 0.5]}}
    assert Sample.from_json(content, "here").part.shares == (1.0, 0.5)


@pytest.mark.parametrize("version", [4, 12])
def test_a_newer_version_is_refused_by_name(refused: Any, version: int) -> None:
    found = refused({"schema": f"lonas-edge/sample/{version}", "unheard": "of"})
    assert found == [
        f"written by a newer lonas-edge (lonas-edge/sample/{version}; this one reads sample/3 and older). Update lonas-edge."
    ]


@pytest.mark.parametrize("name", [{}, {"format": 1}, {"schema": "lonas-edge/sample/1"}])
def test_an_older_version_is_migrated_step_by_step(name: dict[str, Any]) -> None:
    content = {**name, "part": {"length": "7"}, "title": "old"}
    assert Sample.from_json(content, "here") == Sample(Part(7), {}, "old")
    assert content["part"] == {"length": "7"}  # what was given is as it was


def test_the_version_before() -> None:
    assert Sample.from_json({"schema": "lonas-edge/sample/2", "part": {"size": 7}}, "here") == Sample(Part(7), {})
    assert Sample.from_json({"format": 2, "part": {"size": 7}}, "here") == Sample(Part(7), {})


def test_an_older_version_without_a_way_is_refused_with_the_way_out(refused: Any) -> None:
    told = ["version 1 of forgetful, which this lonas-edge no longer reads. Make it again."]
    assert refused({"schema": "lonas-edge/forgetful/1", "parts": {}}, Forgetful) == told
    assert refused({"format": 1, "parts": {}}, Forgetful) == told
    assert refused({"schema": "lonas-edge/forgetful/0"}, Forgetful)[0].startswith("version 0 of forgetful")


@pytest.mark.parametrize(
    "schema", ["lonas-edge/other/3", "sample/3", "lonas-edge/sample", "lonas-edge/sample/x", "lonas-edge/sample/-1", 3, None]
)
def test_another_schema(refused: Any, schema: object) -> None:
    (found,) = refused({**JSON, "schema": schema})
    assert found == f"expected schema lonas-edge/sample/3, found {schema!r}. Sample it again."


def test_a_format_that_is_no_number(refused: Any) -> None:
    assert "found 'lonas-edge/sample/new'" in refused({"format": "new", "part": {"size": 1}, "parts": {}})[0]


@pytest.mark.parametrize(
    ("wrong", "faults"),
    [
        ({"part": {"size": True, "shares": [0.5, "1"]}}, ["part.size: * integer, found True", "part.shares.1: * '1'"]),
        ({"part": {"size": 1.0}, "title": 5}, ["part.size: * integer, found 1.0", "title: * string, found 5"]),
        ({"parts": {"a": {}, "b": {"size": "1"}}}, ["parts.a.size: Field required", "parts.b.size: * integer, found '1'"]),
        ({"part": 3, "parts": []}, ["part: * found 3", "parts: * found []"]),
        ({"part": None}, ["part: * found None"]),
        ({"extra": 1, "part": {"size": 1, "more": 2}}, ["part.more: Unexpected *", "extra: Unexpected *"]),
        ({"format": 3}, ["format: Unexpected *"]),  # only before there was a schema
        ({"title": "x" * 1000, "kind": "x" * 1000}, ["kind: * found 'xxxx"]),
    ],
)
def test_every_wrong_field_is_told(refused: Any, wrong: dict[str, Any], faults: list[str]) -> None:
    first, *told, last = refused({**JSON, **wrong})
    assert (first, last) == ("not a sample of lonas-edge:", "Sample it again.")
    assert len(told) == len(faults)
    for line, fault in zip(told, faults, strict=True):
        start, _, end = fault.partition("*")
        assert line.startswith(f"  - {start}") and end in line and len(line) < 150, line


def test_missing_fields(refused: Any) -> None:
    told = ["  - part: Field required", "  - parts: Field required"]
    assert refused({"schema": "lonas-edge/sample/3"})[1:-1] == told


def test_a_migration_that_meets_what_it_did_not_expect(refused: Any) -> None:
    assert refused({"format": 1, "part": {}}) == ["damaged: KeyError: 'length'. Sample it again."]
    assert refused({"format": 1, "part": None})[0].startswith("damaged: AttributeError: ")
    assert refused({"format": 1, "part": {"length": "x"}})[0].startswith("damaged: ValueError: ")
    # what it hands on is checked as anything else
    assert refused({"format": 1, "part": {"length": 1, "shares": 2}})[1].startswith("  - part.shares: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [("[1]", "expected a JSON object, found list"), ("{", "not readable as JSON"), ("", "not readable as JSON")],
)
def test_not_an_object(refused: Any, text: str, told: str) -> None:
    assert refused(text)[0].startswith(told)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"none\.json: not readable as JSON"):
        Sample.read(tmp_path / "none.json")


def test_text_that_is_not_unicode(refused: Any) -> None:
    told = refused('{"schema": "lonas-edge/sample/3", "title": "\\ud800"}')
    assert told[0] == "not readable as JSON:" and told[1].startswith("  - title: ")
