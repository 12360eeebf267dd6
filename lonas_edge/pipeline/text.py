"""Text that a model or a file supplied, made safe to show."""

import re
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Value = TypeVar("Value")

# control characters except tab and line feed, and halves of surrogate pairs, which no file can hold
_NOT_SHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(value: Value) -> Value:
    """Return a value, such as a record, whose texts have no characters that cannot be written or shown."""
    content: Any = value
    if isinstance(content, str):
        content = _NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", content.replace("\r\n", "\n").replace("\r", "\n"))
    elif isinstance(content, dict):
        content = {printable(key): printable(inner) for key, inner in content.items()}
    elif isinstance(content, (list, tuple)):
        content = type(content)(printable(inner) for inner in content)
    elif is_dataclass(content) and not isinstance(content, type):
        content = type(content)(**{field.name: printable(getattr(content, field.name)) for field in fields(content)})
    return content  # type: ignore[no-any-return]


def shortened(text: str, limit: int) -> str:
    """Cut a text and say how long it was."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text):,} characters)"
