"""Make a command of a function whose parameter is a dataclass of options."""

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import click

from lonas_edge.cli.commands import HELP
from lonas_edge.errors import LonasEdgeError, UsageError, one_line
from lonas_edge.files import read_text
from lonas_edge.options import PANELS, RECIPE, Option, declared, user_path

_ARGUMENTS = "Arguments"
_METAVARS = {int: "INTEGER", float: "FLOAT", Path: "PATH", str: "TEXT"}


def command(run: Callable[[Any], None]) -> click.Command:
    """Make a command with the options of `run`'s parameter and its docstring as help."""
    [cls] = [hint for name, hint in get_type_hints(run).items() if name != "return"]

    def invoke(**values: Any) -> None:
        given = {name: value for name, value in values.items() if value not in (None, ())}
        try:
            options = cls(**given)
        except UsageError as error:
            raise click.UsageError(str(error)) from None
        run(options)

    config = click.Option(
        ["--config"],
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        metavar="FILE.yaml",
        help="Read options from a YAML file, by their names; a flag on the command line wins.",
    )
    params = [*map(_parameter, declared(cls).values()), config]
    return _Command(None, params=params, callback=invoke, help=inspect.cleandoc(run.__doc__ or ""), context_settings=HELP)


class _Command(click.Command):
    """Shows its options by panel, the common ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in (_ARGUMENTS, *PANELS)}
        for param in self.get_params(ctx):
            option: Option | None = getattr(param, "option", None)
            if option and option.argument:
                panels[_ARGUMENTS].append((param.make_metavar(ctx), option.help))
            elif record := param.get_help_record(ctx):
                panels[option.panel if option else PANELS[-1]].append(record)
        for name, rows in panels.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)


def _parameter(option: Option) -> click.Parameter:
    """Make a parameter whose value is a text: pydantic makes the value, and has the defaults."""
    kind = "|".join(option.choices) if option.choices and option.many else _METAVARS.get(option.kind)
    settings: dict[str, Any] = {"type": click.UNPROCESSED, "required": option.required, "metavar": option.metavar or kind}
    if option.many and not (option.repeat or option.argument):
        settings["metavar"] += ",…"
    elif option.choices:
        settings |= {"type": click.Choice(list(option.choices), case_sensitive=False), "metavar": None}
    param: Any
    if option.argument:
        settings |= {"nargs": -1 if option.many else 1, "metavar": option.metavar or option.shown}
        param = click.Argument([option.name], **settings)
    else:
        names = [option.shown, option.name]
        if option.kind is bool:
            names[0] += f"/--no-{option.shown.removeprefix('--')}" if option.default is not False else ""
            settings = {"is_flag": True, "default": None}
        param = click.Option(names, multiple=option.repeat, help=described(option), **settings)
    param.option = option
    made: click.Parameter = param
    return made


def described(option: Option) -> str:
    """The help of an option with its default and range."""
    notes = [f"default: {option.default_shown}"] if option.default_shown else []
    notes += [option.bounds] if option.bounds else []
    notes += ["may be repeated"] if option.repeat else []
    return f"{option.help} [{'; '.join(notes)}]" if notes else option.help


def _read_config(ctx: click.Context, _param: click.Parameter, file: str | None) -> None:
    """Take the file's options as defaults of the command line."""
    if file is None:
        return
    import yaml

    path = Path(user_path(file))
    try:
        content = yaml.safe_load(read_text(path, "the options")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not readable as YAML: {one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise click.UsageError(f"{path}: expected options as `name: value` lines, found {type(content).__name__}")
    ctx.meta[RECIPE] = content.pop(RECIPE, None)
    options: Sequence[Option] = [param.option for param in ctx.command.params if hasattr(param, "option")]
    names = {name: each for each in options for name in (each.shown.lower().lstrip("-"), each.name)}
    wrong, values = [], {}
    for key, value in content.items():
        name = str(key).lstrip("-")
        option = names.get(name.replace("_", "-")) or names.get(name)
        if option is None:
            near = get_close_matches(name, names, 1)
            wrong.append(f"{path}: unknown option {one_line(name)!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif value is not None:
            values[option.name] = [value] if option.repeat and not isinstance(value, list) else value
    if wrong:
        raise click.UsageError("\n".join(wrong))
    ctx.default_map = values
