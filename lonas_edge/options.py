"""Options, each declared once: the command line, the checks and the reference pages derive from the declaration.

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions(Options):
        rank: int = option(32, help="Rank of the LoRA adapters.", minimum=1)

Pydantic checks an instance when it is made, so that Python, `--config` and the command line give the same errors: those of
single values, all at once, and if there are none, conflicts between options.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import MISSING
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

from pydantic import (  # fmt: skip
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lonas_edge.errors import UsageError, one_line

COMMON = "Options"  # the panel that `--help` shows first: at most six options of a command
PANELS = (COMMON, "Model", "Data", "Training", "Device", "Output", "Advanced")
LARGEST_SEED = 2**32 - 1  # NumPy's
_Part = TypeVar("_Part", bound="Options")


def from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    """Make a value of a text; any other value is already one. `parse` raises ValueError."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def user_path(text: str) -> str:
    """A path in which `~` is the user's home: shells leave it as it is in `--output=~/exported`."""
    if not text.strip():
        raise ValueError("is empty")  # and would be the working directory
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError as error:
        raise ValueError(f"no such user's home directory; write ./{text} for a file of that name") from error


def _split(text: str) -> tuple[str, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError("has an empty entry; expected values with commas between them")
    return tuple(dict.fromkeys(parts))


COMMAS = from_text(_split)
PathOrName = Annotated[str, from_text(user_path)]
UserPath = Annotated[Path, from_text(user_path)]
Names = Annotated[tuple[str, ...], COMMAS]


@plain_dataclass(frozen=True)
class Option:
    """A declaration."""

    name: str  # the field's
    help: str  # one line: a noun phrase or an imperative
    kind: type  # of a value, or of each value of a tuple (`many`)
    many: bool
    default: Any  # MISSING if it is required
    bounds: str  # the range of its values, in words
    panel: str = COMMON  # section of the help
    flag: str = ""  # without dashes; the field's name with `-` for `_` when empty
    metavar: str | None = None  # what stands for the value in the help
    choices: Collection[str] = ()  # allowed values
    unset: str = ""  # in words, what the default None stands for
    argument: bool = False  # whether it is positional
    exists: bool = False  # whether it names a file that must exist
    repeat: bool = False  # whether it may be repeated; other tuples are lists with commas
    hidden: bool = False  # whether the help leaves it out; messages or commands that `compress` prints name it

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def shown(self) -> str:
        """As it is written on the command line."""
        name = self.flag or self.name.replace("_", "-")
        return name.upper() if self.argument else f"--{name}"

    @property
    def described(self) -> str:
        """The help with the default and the range."""
        default = self.unset
        if not default and self.default not in (None, (), False, MISSING):
            values = self.default if self.many else [self.shown[2:] if self.default is True else self.default]
            default = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        notes = [f"default: {default}" if default else "", self.bounds, "may be repeated" if self.repeat else ""]
        notes = [note for note in notes if note]
        return f"{self.help} [{'; '.join(notes)}]" if notes else self.help


def option(
    default: Any = PydanticUndefined,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    **settings: Any,
) -> Any:
    """Declare an option as a field of a dataclass; `settings` are those of `Option`. Without a default it is required."""
    limits = (("more than", above), ("at least", minimum), ("at most", maximum))
    settings["bounds"] = ", ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None and abs(limit) < 1e6)
    return Field(default, description=help, ge=minimum, le=maximum, gt=above, json_schema_extra=settings)


def base_model(unset: str, **settings: Any) -> Any:
    """Declare the base model of an adapter as an option."""
    return option(None, metavar="MODEL", help="Base model, a directory or hub id (ID or ID@REVISION).", unset=unset, **settings)


def declared(cls: type) -> dict[str, Option]:
    """The options that a dataclass declares, by field name, sorted by panel."""
    found = {}
    for name, field in _fields(cls).items():
        if field.description:
            parts = list(_parts(field.annotation))
            kind = next(kind for kind in (bool, int, float, Path, str) if kind in parts)
            default = MISSING if field.is_required() else field.default
            settings: Any = field.json_schema_extra
            found[name] = Option(name, field.description, kind, tuple in parts, default, **settings)
    return dict(sorted(found.items(), key=lambda item: PANELS.index(item[1].panel)))


def _fields(cls: Any) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__
    return fields


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and all that it consists of: `tuple[int, ...] | None` has tuple and int."""
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of dataclasses with options: an instance with wrong values cannot be made."""

    def conflicts(self) -> Iterator[str]:
        """List options that do not fit together, one line each; subclasses add theirs."""
        yield from ()

    def given(self, name: str) -> bool:
        """Whether an option differs from its default."""
        value = getattr(self, name)
        return value is not None and value != _fields(type(self))[name].default

    def refuse_idle(self, names: Collection[str], reason: str) -> None:
        """Refuse options that were given but have no effect."""
        given = [option.shown for name, option in declared(type(self)).items() if name in names and self.given(name)]
        if given:
            raise UsageError(_listed([f"{shown} has no effect: {reason}" for shown in given]))

    def part(self, cls: type[_Part]) -> _Part:
        """The options of one of the classes that this one is made of."""
        return cls(**{name: getattr(self, name) for name in _fields(cls)})

    @field_validator("*")
    @classmethod
    def _check_value(cls, value: Any, info: ValidationInfo) -> Any:
        settings: Any = _fields(cls)[str(info.field_name)].json_schema_extra or {}
        for item in value if isinstance(value, tuple) else [value]:
            if isinstance(item, str) and not item.strip():
                raise ValueError("is empty")
            if settings.get("exists") and item is not None and not _exists(item):
                raise ValueError("no such file")
            if settings.get("choices") and item is not None and item not in settings["choices"]:
                raise ValueError(f"expected {', '.join(settings['choices'])}")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _check_all(cls, values: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            made = make(values)
        except ValidationError as error:
            raise UsageError(_listed([_line(cls, each) for each in error.errors()])) from None
        if conflicts := list(made.conflicts()):
            raise UsageError(_listed(conflicts))
        return made


def _exists(path: Path) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, or a directory that cannot be read
        return path.exists()
    return False


def _line(cls: type, error: Any) -> str:
    """One line for an error of pydantic: the option, its value, and what is wrong."""
    option = declared(cls).get(error["loc"][0])
    value = "" if error["type"] == "missing" else f" {one_line(str(error['input'])) or repr('')}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{option.shown if option else error['loc'][0]}{value}: {message[:1].lower()}{message[1:]}"


def _listed(lines: list[str]) -> str:
    return lines[0] if len(lines) == 1 else "\n  - ".join(["wrong options:", *lines])
