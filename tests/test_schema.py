"""Records on disk: written, read back, or refused with every error."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.schema import Record


@dataclass(frozen=True)
class Part:
    """A part of a record."""

    size: int
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sample(Record):
    """A record."""

    NAME: ClassVar[str] = "sample"
    VERSION: ClassVar[int] = 3
    AGAIN: ClassVar[str] = "Sample it again."
    part: Part
    parts: dict[str, Part]
    title: str | None = None
    kind: Part | None = None


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
    """Reads wrong JSON from a file; returns the error's lines after the file's name."""

    def read(content: Any) -> list[str]:
        path = tmp_path / "sample.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(LonasEdgeError) as caught:
            Sample.read(path)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ").splitlines()

    return read


def test_written_and_read_back(tmp_path: Path) -> None:
    SAMPLE.write(tmp_path / "sample.json")
    assert json.loads((tmp_path / "sample.json").read_text()) == JSON
    assert next(iter(json.loads((tmp_path / "sample.json").read_text()))) == "schema"
    assert Sample.read(tmp_path / "sample.json") == SAMPLE
    assert [path.name for path in tmp_path.iterdir()] == ["sample.json"]


def test_defaults_and_the_schema_may_be_missing() -> None:
    assert Sample.from_json({"part": {"size": 3, "shares": [1]}, "parts": {}}, "here") == Sample(Part(3, (1.0,)), {})


@pytest.mark.parametrize("schema", ["lonas-edge/other/3", "lonas-edge/sample/12", None])
def test_another_schema_is_refused(refused: Any, schema: object) -> None:
    expected = f"expected schema lonas-edge/sample/3, found {schema!r}, of another version. Sample it again."
    assert refused({**JSON, "schema": schema}) == [expected]


@pytest.mark.parametrize(
    ("wrong", "errors"),
    [
        ({"part": {"size": True, "shares": [0.5, "1"]}}, ["part.size: * integer, found True", "part.shares.1: * '1'"]),
        ({"part": {"size": 1.0}, "title": 5}, ["part.size: * integer, found 1.0", "title: * string, found 5"]),
        ({"parts": {"a": {}, "b": {"size": "1"}}}, ["parts.a.size: Field required", "parts.b.size: * integer, found '1'"]),
        ({"part": None, "parts": []}, ["part: * found None", "parts: * found []"]),
        ({"extra": 1, "part": {"size": 1, "more": 2}}, ["part.more: Unexpected *", "extra: Unexpected *"]),
        ({"title": "x" * 1000, "kind": "x" * 1000}, ["kind: * found 'xxxx"]),
    ],
)
def test_every_wrong_field_is_reported(refused: Any, wrong: dict[str, Any], errors: list[str]) -> None:
    first, *lines, last = refused({**JSON, **wrong})
    assert (first, last) == ("not a sample of lonas-edge:", "Sample it again.")
    assert len(lines) == len(errors)
    for line, error in zip(lines, errors, strict=True):
        start, _, end = error.partition("*")
        assert line.startswith(f"  - {start}") and end in line and len(line) < 150, line


def test_other_text_is_refused(refused: Any) -> None:
    assert refused("[1]")[0].startswith("expected a JSON object, found list")
