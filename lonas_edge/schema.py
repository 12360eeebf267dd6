"""What is written to disk: typed, versioned, and checked when it is read.

A record is a frozen dataclass. Its JSON says `"schema": "lonas-edge/NAME/VERSION"`. A newer version than this program's is
refused by name; an older one is migrated step by step, or refused with the way out. pydantic does the checking.
"""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_json, replace_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Migration = Callable[[dict[str, Any]], dict[str, Any]]  # content of one version, without `schema`, to that of the next

_PREFIX = "lonas-edge"


class Record:
    """Base of the dataclasses that are written to disk.

    Attributes:
        NAME: What the record is, as in its `schema`.
        VERSION: The version that this program writes.
        MIGRATIONS: For an older version, the way to the next one. A version without a way is refused.
        AGAIN: What makes the file anew, for the message about one that cannot be read.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int]
    MIGRATIONS: ClassVar[Mapping[int, Migration]] = {}
    AGAIN: ClassVar[str] = "Make it again."
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, its schema first."""
        return {"schema": f"{_PREFIX}/{self.NAME}/{self.VERSION}", **asdict(self)}  # type: ignore[call-overload]

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all.

        Args:
            path: The file.
        """
        replace_text(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Args:
            path: The file.

        Returns:
            The record, migrated where it is of an older version.

        Raises:
            LonasEdgeError: If it cannot be read, is something else, is of a version that this program cannot read, or does not
                hold what it should; every fault is listed.
        """
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> Self:
        """Check a JSON object.

        Args:
            content: The object.
            where: What to call it in an error.

        Returns:
            The record.

        Raises:
            LonasEdgeError: As of `read`.
        """
        from pydantic import ValidationError

        version = cls._version(content, where)
        left_out = "schema" if "schema" in content else "format"
        values = {name: value for name, value in content.items() if name != left_out}
        for older in range(version, cls.VERSION):
            values = cls._migrated(older, values, where)
        try:
            return cls._checker().validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            problems = [_told(fault) for fault in error.errors(include_url=False)]
            raise_all(f"{where}: not a {cls.NAME} of lonas-edge:", problems, cls.AGAIN)
            raise  # never reached: there is at least one fault

    @classmethod
    @cache
    def _checker(cls) -> "TypeAdapter[Self]":
        """pydantic is imported, and a record's checks are made, when the first one is read."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls)

    @classmethod
    def _version(cls, content: Mapping[str, Any], where: str) -> int:
        """Its version; `"format": 1` was written before there was a schema."""
        schema = content.get("schema", f"{_PREFIX}/{cls.NAME}/{content.get('format', 1)}")
        name, _, version = str(schema).rpartition("/")
        if name != f"{_PREFIX}/{cls.NAME}" or not version.isdecimal():
            raise LonasEdgeError(f"{where}: expected schema {_PREFIX}/{cls.NAME}/{cls.VERSION}, found {schema!r}. {cls.AGAIN}")
        if int(version) > cls.VERSION:
            raise LonasEdgeError(
                f"{where}: written by a newer lonas-edge ({schema}; this one reads {cls.NAME}/{cls.VERSION} and older). "
                "Update lonas-edge."
            )
        return int(version)

    @classmethod
    def _migrated(cls, older: int, values: dict[str, Any], where: str) -> dict[str, Any]:
        if older not in cls.MIGRATIONS:
            raise LonasEdgeError(f"{where}: version {older} of {cls.NAME}, which this lonas-edge no longer reads. {cls.AGAIN}")
        try:
            return cls.MIGRATIONS[older](deepcopy(values))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LonasEdgeError(f"{where}: damaged: {type(error).__name__}: {error}. {cls.AGAIN}") from error


def field_faults(kind: Any, content: Mapping[str, Any]) -> list[str]:
    """Faults of the fields of a JSON object that somebody else wrote; fields that `kind` does not name are left alone.

    Args:
        kind: A `TypedDict` with the types that fields must have.
        content: The object.

    Returns:
        One line a fault: the field, what is wrong, and what was found.
    """
    from pydantic import ValidationError

    try:
        _typed(kind).validate_python(content, strict=True)
    except ValidationError as error:
        return [_told(fault) for fault in error.errors(include_url=False)]
    return []


@cache
def _typed(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _told(fault: Mapping[str, Any]) -> str:
    """A fault of pydantic's: the field, what is wrong, and what was found where the message alone does not say it."""
    field = ".".join(map(str, fault["loc"]))
    found = "" if fault["type"] in ("missing", "unexpected_keyword_argument") else f", found {shortened(fault['input'])}"
    return f"{field}: {fault['msg']}{found}" if field else str(fault["msg"])
