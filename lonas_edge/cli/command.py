"""Make commands from dataclasses of options: `@command(SourceOptions, TrainOptions)`."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from typer.core import TyperArgument, TyperCommand, TyperOption

from lonas_edge.errors import LonasEdgeError, one_line
from lonas_edge.files import read_text
from lonas_edge.options import PANELS, RECIPE, RECIPE_VERSION, Declared, declared, problems

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # not generic in all versions
    ParamType = click.ParamType


def command(*classes: type) -> Callable[[Callable[..., None]], TyperCommand]:
    """Make a command of a function that takes an instance of each class.

    Args:
        *classes: Dataclasses whose fields are options.

    Returns:
        A decorator. The command has the name of the function and its docstring as help.
    """

    def decorate(run: Callable[..., None]) -> TyperCommand:
        known = declared(*classes)

        def invoke(**values: Any) -> None:
            if wrong := problems(values, *classes):
                raise click.UsageError(wrong[0] if len(wrong) == 1 else "\n  - ".join(["wrong options:", *wrong]))
            made = [{each.name: values[each.name] for each in declared(cls)} for cls in classes]
            run(*(cls(**options) for cls, options in zip(classes, made, strict=True)))

        config = TyperOption(
            param_decls=["--config"],
            type=PATH,
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            metavar="FILE.yaml",
            help="Read options from a YAML file, by their names; a flag on the command line wins.",
            rich_help_panel=PANELS[-1],
        )
        params = [*map(_parameter, known), config]
        return TyperCommand(
            None,
            params=params,
            callback=invoke,
            help=_reflowed(run.__doc__ or ""),
            context_settings=HELP,
            rich_markup_mode="rich",
        )

    return decorate


def _reflowed(text: str) -> str:
    """Join the lines of each paragraph: Typer (0.25) keeps their ends, and the terminal's width adds others."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def _parameter(known: Declared) -> click.Parameter:
    """Make the parameter of an option; `problems` checks the values of all options together."""
    kind: Any = known.kind
    if known.option.parse:
        kind = _Parsed(known.option.parse)
    elif known.option.choices:
        kind = click.Choice(list(known.option.choices), case_sensitive=False)
    elif kind is Path:
        kind = PATH
    elif kind is str and known.option.path:
        kind = PATH_OR_NAME
    settings: dict[str, Any] = {"type": kind, "metavar": known.option.metavar, "required": known.required}
    if not known.required:
        settings["default"] = known.default
    if known.option.argument:
        settings |= {"nargs": -1} if known.many else {}
        settings |= {"metavar": known.option.metavar or known.flag, "help": known.option.help, "show_default": False}
        param: click.Parameter = TyperArgument(param_decls=[known.name], **settings)
        vars(param)["help"] = known.option.help  # click's own constructor clears it (see the design notes)
    else:
        if known.many and known.option.repeat:
            settings["multiple"] = True
        elif known.many:
            settings["type"] = _Listed(settings["type"])
        names = [known.flag, known.name]
        if known.kind is bool:
            names[0] += f"/--no-{known.flag.removeprefix('--')}" if known.default is not False else ""
            settings = {"default": known.default, "is_flag": True}
        settings |= {"help": described(known), "rich_help_panel": known.option.panel, "hidden": known.option.hidden}
        param = TyperOption(param_decls=names, **settings)
    param.declared = known  # type: ignore[attr-defined]
    return param


def described(known: Declared) -> str:
    """The help of an option with its default and range."""
    kept = [f"default: {known.default_shown}"] if known.default_shown else []
    kept += [known.bounds] if known.bounds else []
    kept += ["may be repeated"] if known.option.repeat else []
    text = known.option.help.replace("[", "\\[")  # not rich's markup
    return f"{text} \\[{'; '.join(kept)}]" if kept else text


class _Listed(ParamType):
    """Values with commas between them, each once."""

    name = "list"

    def __init__(self, item: Any) -> None:
        self.item = click.types.convert_type(item)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"{self.item.get_metavar(param, ctx) or self.item.name.upper()},…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if isinstance(value, str) and not all(parts):
            self.fail(f"{one_line(value)!r} has an empty entry; expected values with commas between them", param, ctx)
        return tuple(dict.fromkeys(self.item.convert(part, param, ctx) for part in parts))


class _Parsed(ParamType):
    """A text with a form of its own."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def user_path(text: str) -> str:
    """A path in which `~` is the user's home: shells leave it as it is in `--output=~/exported`.

    Raises:
        BadParameter: If it is empty, or there is no such home.
    """
    if not text:
        raise click.BadParameter("is empty")  # and would be the working directory
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise click.BadParameter(f"{text}: no such user's home directory; write ./{text} for a file of that name") from None


PATH: "click.ParamType[Path]" = click.types.FuncParamType(lambda text: Path(user_path(str(text))))
PATH_OR_NAME: "click.ParamType[str]" = click.types.FuncParamType(lambda text: user_path(str(text)))
PATH.name, PATH_OR_NAME.name = "path", "text"


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Take the file's options as defaults."""
    if path is None:
        return
    import yaml

    try:
        content = yaml.safe_load(read_text(path, "the options"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not readable as YAML: {one_line(str(error))}") from error
    if content is not None and not isinstance(content, dict):
        raise click.UsageError(f"{path}: expected options as `name: value` lines, found {type(content).__name__}")
    names = {name: param for param in ctx.command.params for name in _names(param)}
    values: dict[str, Any] = {}
    ctx.meta[RECIPE] = (content or {}).pop(RECIPE, None)
    wrong = _recipe_faults(ctx.meta[RECIPE])
    for key, value in (content or {}).items():
        name = str(key).lstrip("-").replace("_", "-")
        param = names.get(name) or names.get(name.replace("-", "_"))
        if param is None or not param.expose_value:
            near = get_close_matches(name, names, 1)
            wrong.append(f"unknown option {one_line(str(key))!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif value is not None:
            try:
                values[str(param.name)] = _typed(ctx, param, f"--{name}" in param.secondary_opts, value)
            except click.BadParameter as error:
                wrong.append(f"{one_line(str(key))}: {error.message}")
    if wrong:
        raise click.UsageError("\n".join(f"{path}: {each}" for each in wrong))
    ctx.default_map = values


def _names(param: click.Parameter) -> list[str]:
    """The names of an option in a file; an argument also has that of the help, in lower case."""
    known: Declared | None = getattr(param, "declared", None)
    shown = [known.flag.lower()] if known and known.option.argument else []
    return [name.lstrip("-") for name in (*shown, *param.opts, *param.secondary_opts)]


def _recipe_faults(section: Any) -> list[str]:
    """What is wrong with the section of a file that `compress` wrote, if there is one."""
    version = section.get("recipe") if isinstance(section, dict) else section
    if version in (None, RECIPE_VERSION):
        return []
    advice = ". Update lonas-edge" if isinstance(version, int) and version > RECIPE_VERSION else ""
    return [f"{RECIPE}: recipe {one_line(repr(version))}; this lonas-edge reads {RECIPE_VERSION}{advice}"]


def _typed(ctx: click.Context, param: click.Parameter, negated: bool, value: Any) -> Any:
    """A value of the file as the option has it."""
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise click.BadParameter(f"expected true or false, found {one_line(repr(value))}")
        return value != negated
    many = param.multiple or param.nargs == -1 or isinstance(param.type, _Listed)
    items = value if many and isinstance(value, list) else [value]
    if any(isinstance(item, bool | list | dict) for item in items):
        raise click.BadParameter(f"expected {'a list of values' if many else 'one value'}, found {one_line(repr(value))}")
    texts = [str(item) for item in items]
    text = ",".join(texts) if isinstance(param.type, _Listed) else texts if many else texts[0]
    param.type_cast_value(ctx, text)
    return text
