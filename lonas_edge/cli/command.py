"""What commands share: making one of a function whose parameter is a dataclass of options, and options of several commands."""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import click
from pydantic.dataclasses import dataclass
from typer.core import TyperArgument, TyperCommand, TyperOption

from lonas_edge.cli.commands import HELP
from lonas_edge.errors import UsageError, one_line
from lonas_edge.files import read_text
from lonas_edge.options import PANELS, Option, Options, PathOrName, UserPath, base_model, declared, from_text, option, user_path
from lonas_edge.output import OutputDirectory

_METAVARS = {int: "INTEGER", float: "FLOAT", Path: "PATH", str: "TEXT"}
_RENAMED = {  # earlier names, which still work
    "--arms": "--variants",
    "--num-prompts": "--num-samples",
    "--precision": "--dtype",
    "--prompt": "--template",
    "--size": "--vocabulary",
}
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "nncf_config", _PACKAGE.parent / "nncf_config")  # in a wheel, and in a checkout
SUBNET_HELP = "Sub-network: heuristic, maximal, minimal, random:SEED, or a JSON file."
SUBNET_UNSET = "heuristic; maximal without a search space"


def command(run: Callable[[Any], None]) -> TyperCommand:
    """Make a command with the options of `run`'s parameter and its docstring as help."""
    [cls] = [hint for name, hint in get_type_hints(run).items() if name != "return"]

    def invoke(**values: Any) -> None:
        try:
            run(cls(**{name: value for name, value in values.items() if value not in (None, ())}))
        except UsageError as error:
            raise click.UsageError(str(error)) from None

    config = TyperOption(
        param_decls=["--config"],
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        metavar="FILE.yaml",
        help="Read options from a YAML file, by their names; a flag on the command line wins.",
        rich_help_panel=PANELS[-1],
    )
    params = [*map(_parameter, declared(cls).values()), config]
    text = inspect.cleandoc(run.__doc__ or "")
    return _Command(None, params=params, callback=invoke, help=text, context_settings=HELP, rich_markup_mode=None)


def _newest(name: str, options: Collection[str]) -> str:
    """The name of an option today, for its name in earlier versions."""
    return _RENAMED[name] if name not in options and _RENAMED.get(name) in options else name


class _Command(TyperCommand):
    """Shows its options by panel, the common ones first. Rich's boxes would take 0.3 s more."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {name for param in self.params for name in param.opts}
        named = [arg.partition("=") for arg in args]
        return super().parse_args(ctx, [_newest(name, options) + equals + value for name, equals, value in named])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in PANELS}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                panels[getattr(param, "rich_help_panel", PANELS[-1])].append(record)
        for name, rows in panels.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)


def _parameter(option: Option) -> click.Parameter:
    """Make a parameter whose value is a text: pydantic makes the value, and has the defaults."""
    kind = "|".join(option.choices) if option.choices and option.many else _METAVARS.get(option.kind)
    settings: dict[str, Any] = {"type": click.UNPROCESSED, "metavar": option.metavar or kind}
    if option.many and not (option.repeat or option.argument):
        settings["metavar"] += ",…"
    elif option.choices:
        settings = {"type": click.Choice(list(option.choices), case_sensitive=False)}
    settings |= {"required": option.required, "help": option.described, "show_default": False}
    param: Any
    if option.argument:
        settings |= {"nargs": -1 if option.many else 1, "metavar": option.metavar or option.shown}
        param = TyperArgument(param_decls=[option.name], **settings)
        param.help = option.help  # Click's own constructor clears it
    else:
        names = [option.shown, option.name]
        if option.kind is bool:
            names[0] += f"/--no-{option.shown[2:]}" if option.default is not False else ""
            settings |= {"type": None, "metavar": None, "is_flag": True, "default": None}
        settings |= {"multiple": option.repeat, "hidden": option.hidden}
        param = TyperOption(param_decls=names, rich_help_panel=option.panel, **settings)
    param.option = option
    made: click.Parameter = param
    return made


def _read_config(ctx: click.Context, _param: click.Parameter, file: str | None) -> None:
    """Take the file's options as defaults of the command line."""
    if file is None:
        return
    import yaml

    path = Path(user_path(file))
    try:
        content = yaml.safe_load(read_text(path, "the options")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise click.UsageError(f"{path}: not readable as YAML: {one_line(str(error))}") from error
    if not isinstance(content, dict):
        raise click.UsageError(f"{path}: expected options as `name: value` lines, found {type(content).__name__}")
    options: list[Option] = [param.option for param in ctx.command.params if hasattr(param, "option")]
    names = {each.shown.lower().lstrip("-"): each for each in options}
    wrong, values = [], {}
    for key, value in content.items():
        name = _newest("--" + str(key).lstrip("-").replace("_", "-"), [f"--{each}" for each in names])[2:]
        if name not in names:
            near = get_close_matches(name, names, 1)
            wrong.append(f"{path}: unknown option {one_line(str(key))!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif value is not None:
            values[names[name].name] = [value] if names[name].repeat and not isinstance(value, list) else value
    if wrong:
        raise click.UsageError("\n".join(wrong))
    ctx.default_map = values


def search_space(text: str) -> Path:
    """The file of a search space: a path, or the name of one that lonas-edge ships (`llama_7b`)."""
    path = Path(user_path(text))
    shipped = [folder / f"{text}.json" for folder in _SHIPPED]
    return next((each for each in shipped if not path.exists() and each.is_file()), path)


SearchSpaceFile = Annotated[Path, from_text(search_space)]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """The base model and the search space of an adapter."""

    model: PathOrName | None = base_model("the one that the adapter's configuration names", panel="Model")
    nncf_config: SearchSpaceFile | None = option(
        None,
        panel="Model",
        metavar="FILE",
        help="Search space: an NNCF configuration, or the name of a shipped one such as llama_7b.",
        unset="the super-adapter's own; none for plain LoRA",
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions(ModelOptions):
    """The network that a command works on."""

    source: PathOrName = option(
        argument=True, help="Super-adapter, LoRA adapter or base model: a directory or hub id (ID@REVISION)."
    )


@dataclass(frozen=True, kw_only=True)
class SubnetOptions(Options):
    """The sub-network."""

    subnet: PathOrName | None = option(None, metavar="SUBNET", help=SUBNET_HELP, unset=SUBNET_UNSET)


@dataclass(frozen=True, kw_only=True)
class JsonOptions(Options):
    """What is printed."""

    json: bool = option(False, panel="Output", help="Print one JSON document on standard output.")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(JsonOptions):
    """Where a measurement is written, and what is printed."""

    output: UserPath | None = option(None, panel="Output", metavar="DIR", help="Directory for the report in JSON and Markdown.")
    overwrite: bool = option(False, panel="Output", help="Replace an existing output.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.overwrite and not self.output:
            yield "--overwrite needs --output"

    def check_output(self, inputs: Sequence[Path | str | None], size: int, resumable: bool = False) -> OutputDirectory | None:
        """Check and return the output, None without --output: it replaces no input and has room for `size` bytes."""
        if not self.output:
            return None
        directory = OutputDirectory(self.output, self.overwrite, inputs)
        directory.check(size, resumable)
        return directory
