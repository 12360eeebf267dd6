"""Records: what is written to disk, typed, versioned and checked by pydantic when it is read.

A record is a frozen dataclass. Its JSON says `"schema": "lonas-edge/NAME/VERSION"`; another version is refused by name.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.files import read_json, replace_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class Record:
    """Base of the dataclasses that are written to disk.

    Attributes:
        NAME: The name in `schema`.
        VERSION: The version of its fields.
        AGAIN: How to create the file again, for errors.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int]
    AGAIN: ClassVar[str] = "Create it again."
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    @classmethod
    def schema(cls) -> str:
        """`lonas-edge/NAME/VERSION`."""
        return f"lonas-edge/{cls.NAME}/{cls.VERSION}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, its schema first."""
        return {"schema": self.schema(), **asdict(self)}  # type: ignore[call-overload]

    def write(self, path: Path) -> None:
        """Write the record atomically."""
        replace_text(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record."""
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> Self:
        """Check a JSON object (`where` in errors); one without a schema, as other programs write it, has the current one."""
        from pydantic import ValidationError

        schema = content.get("schema", cls.schema())
        if schema != cls.schema():
            found = one_line(repr(schema))
            raise LonasEdgeError(f"{where}: expected schema {cls.schema()}, found {found}, of another version. {cls.AGAIN}")
        values = {name: value for name, value in content.items() if name != "schema"}
        try:
            return cls._checker().validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            problems = [describe_error(problem) for problem in error.errors(include_url=False)]
            raise_all(f"{where}: not a {cls.NAME} of lonas-edge:", problems, cls.AGAIN)
            raise  # never reached: there is at least one problem

    @classmethod
    @cache
    def _checker(cls) -> "TypeAdapter[Self]":
        """Import pydantic, and build a record's checks, when the first one is read."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls)


def describe_error(error: Mapping[str, Any]) -> str:
    """The field, what is wrong, and the actual value where pydantic's or a validator's message does not say it."""
    field, message = ".".join(map(str, error["loc"])), str(error["msg"]).removeprefix("Value error, ")
    complete = error["type"] in ("missing", "unexpected_keyword_argument", "value_error")
    actual = "" if complete else f", found {shortened(error['input'])}"
    return f"{field}: {message}{actual}" if field else message


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each setting that differs from a JSON object that was read."""
    lines, now = [], json.loads(json.dumps(now))
    for name in {**before, **now}:
        was, is_now = before.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            lines += differences(was, is_now, f"{prefix}{name} ")
        elif was != is_now:
            lines.append(f"{prefix}{name}: was {_short(was)}, is {_short(is_now)}")
    return lines


def _short(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
