"""Options, each declared once: the command line, the checks and the reference pages derive from the declaration.

    @dataclass(frozen=True, kw_only=True)
    class TrainOptions(Checked):
        rank: int = option(32, help="Rank of the LoRA adapters.", minimum=1)

An instance checks itself, so that a caller from Python and a user of the command line get the same errors.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from lonas_edge.errors import LonasEdgeError, one_line, raise_all

COMMON = "Options"  # the panel that `--help` shows first: at most six options of a command
PANELS = (COMMON, "Model", "Data", "Training", "Device", "Output", "Advanced")
_ABSURD = 1e6  # such bounds are not worth a word in the help
LARGEST = 2**53  # integers beyond it differ between JSON readers
LARGEST_SEED = 2**32 - 1  # NumPy's
RECIPE, RECIPE_VERSION = "lonas-edge", 1  # a section of --config that says what the options were used with, and its version


@dataclass(frozen=True)
class Option:
    """A declaration.

    Attributes:
        help: One line: a noun phrase or an imperative.
        panel: Section of the help, one of `PANELS`.
        flag: Its name without dashes; the field's name with `-` for `_` when None.
        metavar: What stands for the value in the help.
        choices: Allowed values.
        minimum: The least value.
        maximum: The largest value.
        above: The value must be larger than this.
        unset: In words, what the default None stands for.
        needs: Other fields that must be set, too: `NAME`, `NAME|NAME` or `NAME=VALUE|VALUE`, with spaces between them.
        excludes: Fields that must not be set, too, written as in `needs`.
        why: The reason for `needs` or `excludes`.
        argument: Whether it is positional.
        repeat: Whether it may be repeated; other tuples are lists with commas.
        hidden: Whether the help omits it; it is still accepted.
        path: Whether a text may be a path, in which `~` is the home directory.
        parse: Makes the value of the text, and raises ValueError.
    """

    help: str
    panel: str = COMMON
    flag: str | None = None
    metavar: str | None = None
    choices: Collection[str] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    unset: str | None = None
    needs: str = ""
    excludes: str = ""
    why: str = ""
    argument: bool = False
    repeat: bool = False
    hidden: bool = False
    path: bool = False
    parse: Callable[[str], Any] | None = None


def option(default: Any = MISSING, *, help: str, **settings: Any) -> Any:
    """Declare an option as a field of a dataclass; `settings` are those of `Option`. Without a default it is required."""
    return field(default=default, metadata={"option": Option(help, **settings)})


@dataclass(frozen=True)
class Declared:
    """A declaration with what its field adds. `kind` is the type of a value, or of each value of a tuple (`many`)."""

    name: str
    option: Option
    kind: Any
    many: bool
    default: Any

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        name = self.option.flag or self.name.replace("_", "-")
        return name.upper() if self.option.argument else f"--{name}"

    def written(self, value: Any) -> str:
        """As it is written on the command line with a value: `--no-elastic` for False."""
        return f"--no-{self.flag.removeprefix('--')}" if self.kind is bool and not value else self.flag

    @property
    def bounds(self) -> str:
        """The range of its values, in words."""
        limits = (("more than", self.option.above), ("at least", self.option.minimum), ("at most", self.option.maximum))
        return ", ".join(f"{words} {number:g}" for words, number in limits if number is not None and abs(number) < _ABSURD)

    @property
    def default_shown(self) -> str:
        """The default, in words; empty where there is none to show."""
        if self.option.unset or self.required or self.default in (None, ()) or self.default is False:
            return self.option.unset or ""
        if self.default is True:
            return self.flag.removeprefix("--")
        values = self.default if self.many else [self.default]
        return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)

    def given(self, values: Mapping[str, Any]) -> bool:
        """Whether the value is not the default."""
        return bool(values[self.name] != self.default and values[self.name] is not None)

    def set(self, values: Mapping[str, Any], needed: bool) -> bool:
        """Whether a rule that needs, or excludes, the option applies."""
        return bool(values[self.name]) if needed else self.given(values)

    def faults(self, value: Any) -> list[str]:
        """List what is wrong with a value by itself."""
        items = value if self.many and value is not None else [value]
        wrong = [(item, self._fault(item)) for item in items if item is not None]
        return [f"{self.flag} {_shown(item)}: {fault}" for item, fault in wrong if fault]

    def _fault(self, value: Any) -> str:
        known = self.option
        if known.choices and value not in known.choices:
            return f"expected {', '.join(known.choices)}"
        if isinstance(value, str):
            return "" if value.strip() else "is empty"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        if not math.isfinite(value):
            return "is not a finite number"
        limits = (
            ("more than", known.above, known.above is not None and value <= known.above),
            ("at least", known.minimum, known.minimum is not None and value < known.minimum),
            ("at most", known.maximum, known.maximum is not None and value > known.maximum),
        )
        if exceeded := [f"must be {words} {limit}" for words, limit, outside in limits if outside]:
            return exceeded[0]
        return f"must be at most {LARGEST}" if isinstance(value, int) and abs(value) > LARGEST else ""


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else one_line(str(value)) or "''"


@cache
def declared(*classes: type) -> tuple[Declared, ...]:
    """The options that dataclasses declare, by panel, each name once."""
    declarations: dict[str, Declared] = {}
    for cls in classes:
        hints = get_type_hints(cls)
        for each in fields(cls):
            if "option" in each.metadata:
                kinds = [kind for kind in get_args(hints[each.name]) or [hints[each.name]] if kind is not NoneType]
                many = tuple in (get_origin(hints[each.name]), *map(get_origin, kinds))
                kind = get_args(kinds[0])[0] if get_origin(kinds[0]) is tuple else kinds[0]
                declarations[each.name] = Declared(each.name, each.metadata["option"], kind, many, each.default)
    return tuple(sorted(declarations.values(), key=lambda each: PANELS.index(each.option.panel)))


def problems(values: Mapping[str, Any], *classes: type) -> list[str]:
    """List everything that is wrong with the values of options (by field name), one line each."""
    known = {each.name: each for each in declared(*classes)}
    faults = []
    for each in known.values():
        faults += each.faults(values[each.name])
        if each.given(values):
            faults += _conflicts(each, known, values)
    return list(dict.fromkeys(faults))


def _conflicts(each: Declared, known: Mapping[str, Declared], values: Mapping[str, Any]) -> list[str]:
    rules = [(rule, True) for rule in each.option.needs.split()] + [(rule, False) for rule in each.option.excludes.split()]
    conflicts, reason = [], f": {each.option.why}" if each.option.why else ""
    for rule, needed in rules:
        names, _, wanted = rule.partition("=")
        others = [known[name] for name in names.split("|") if name in known]  # those of other dataclasses are not checked
        choices = wanted.split("|") if wanted else []
        met = any(str(values[other.name]) in choices if choices else other.set(values, needed) for other in others)
        if others and met != needed:
            flags = " or ".join(other.written(needed or values[other.name]) for other in others)
            rest = f" {' or '.join(choices)}" if choices else ""
            verb = "needs" if needed else "cannot be combined with"
            conflicts.append(f"{each.written(values[each.name])} {verb} {flags}{rest}{reason}")
    return conflicts


def given(options: Any, name: str) -> bool:
    """Whether an option of an instance differs from its default."""
    cls: Any = type(options)
    return next(each for each in declared(cls) if each.name == name).given(vars(options))


def parse_property(text: str) -> tuple[str, str]:
    """Split NAME=VALUE, an OpenVINO runtime property.

    Raises:
        ValueError: If the text has another form.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (equals and name.isidentifier() and name.isascii() and text.isprintable()):
        raise ValueError(f"{one_line(ascii(text)[1:-1])}: expected NAME=VALUE")
    return name, value


class Checked:
    """Base of dataclasses with options: an instance with wrong values cannot be made."""

    def __post_init__(self) -> None:
        """Check all options."""
        wrong = problems(vars(self), type(self))
        if len(wrong) == 1:
            raise LonasEdgeError(wrong[0])
        raise_all("wrong options:", wrong)
