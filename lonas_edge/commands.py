"""Command lines as data: from the options of a command come the line that a user can run, and what decides its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lonas_edge.options import Option, declared


@dataclass(frozen=True)
class Command:
    """A command line as data."""

    words: str  # the program and its command
    options: Any = None  # the `Options` that decide the result
    paths: Mapping[str, Any] = field(default_factory=dict)  # files, and what only selects from a result; "" is positional
    values: Mapping[str, Any] = field(default_factory=dict)  # options that decide the result and are not in `options`

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, by the name on the command line: all options but paths."""
        options = {option.shown: value for option, value in _declared(self.options) if option.kind is not Path}
        return options | {f"--{name}": value for name, value in self.values.items()}


def to_argv(command: Command) -> list[str]:
    """Write a command line."""
    argv = command.words.split()
    named = {f"--{name}" if name else "": value for name, value in (*command.paths.items(), *command.values.items())}
    named |= {option.shown: value for option, value in _declared(command.options) if value != option.default}
    for name, value in named.items():
        if value is False:
            argv.append(f"--no-{name.removeprefix('--')}")
        elif value is True:
            argv.append(name)
        elif value is not None:
            for each in value if isinstance(value, list) else [value]:
                written = ",".join(map(str, each)) if isinstance(each, tuple) else str(each)
                argv += [name, written] if name else [written]
    return argv


def _declared(options: Any) -> list[tuple[Option, Any]]:
    """The options of an options object with their values."""
    known = declared(type(options)) if options else {}
    return [(option, getattr(options, name)) for name, option in known.items()]
