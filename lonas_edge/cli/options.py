"""Options that several commands share."""

import importlib.util
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperCommand

from lonas_edge.errors import LonasEdgeError, one_line

if TYPE_CHECKING:
    from rich.status import Status

    from lonas_edge.network.source import Located

_LARGEST = 2**53  # whole numbers beyond it are not the same in every JSON reader
_LARGEST_SEED = 2**32 - 1  # NumPy's
_NAME = re.compile(r"\w+", re.ASCII)  # of a run-time property


class CheckedCommand(TyperCommand):
    """A command whose values are checked for what no option of ours takes: nothing, what is not finite, what is absurd."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it, and checked.

        Args:
            ctx: The command's context.
            args: Its arguments.

        Returns:
            Arguments that are left over.

        Raises:
            BadParameter: If a value is wrong.
        """
        left = super().parse_args(ctx, args)
        for param in self.params:
            given = ctx.params.get(param.name or "")
            for value in given if isinstance(given, list | tuple) else [given]:
                if fault := _fault(value):
                    raise click.BadParameter(fault, ctx, param)
        return left


def _fault(value: Any) -> str | None:
    if isinstance(value, str) and not value.strip():
        return "is empty"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"must be {_LARGEST} at most"
    return None


def loading() -> "Status":
    """A spinner on standard error, for the seconds that heavy imports take."""
    from lonas_edge.cli.terminal import console

    return console(stderr=True).status("Loading")


def choice(names: Iterable[str]) -> "click.Choice[str]":
    """The values of an option, from the registry that knows them: `typer.Option(click_type=choice(FORMATS))`.

    Args:
        names: The values.

    Returns:
        The option's type.
    """
    return click.Choice(list(names))


def require_extra(extra: str, *modules: str) -> None:
    """Refuse to go on where an extra of lonas-edge is not installed.

    Args:
        extra: The extra.
        *modules: What it brings, by the names that are imported.

    Raises:
        LonasEdgeError: If one is missing; all that are missing are named.
    """
    missing = [name.replace("_", "-") for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        told = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise LonasEdgeError(f"{told}; pip install 'lonas-edge[{extra}]'")


def user_path(text: str) -> str:
    """A path in which `~` is the user's home: the shell leaves it as it is in `--output=~/exported`.

    Args:
        text: As on the command line; a hub id or another name, too.

    Returns:
        The path.

    Raises:
        BadParameter: If it is empty, or there is no such home.
    """
    if not text:
        raise typer.BadParameter("is empty")  # and would be the working directory
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise typer.BadParameter(f"{text}: no such user's home directory; ./{text} is a file of that name") from None


# of every option that is a path, `typer.Option(click_type=USER_PATH)`, and of one that may be a hub id or another name instead
USER_PATH: "click.ParamType[Path]" = click.types.FuncParamType(lambda text: Path(user_path(str(text))))
USER_PATH_OR_NAME: "click.ParamType[str]" = click.types.FuncParamType(lambda text: user_path(str(text)))
USER_PATH.name, USER_PATH_OR_NAME.name = "path", "text"


def given(ctx: typer.Context, name: str) -> bool:
    """Whether an option was given, rather than left at its default.

    Args:
        ctx: The command's context.
        name: The parameter's name.

    Returns:
        Whether it was.
    """
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def files(choices: Iterable[str | None]) -> list[str]:
    """Those values of --subnet that are files; a directory may well be called `minimal`.

    Args:
        choices: The values.

    Returns:
        The files.
    """
    return [one for one in choices if one and Path(one).is_file()]


def refuse_revision(revision: str | None, located: "Located") -> None:
    """Refuse --revision where the model is not on a hub.

    Args:
        revision: As on the command line.
        located: The base model.

    Raises:
        BadParameter: If it would do nothing.
    """
    if revision and located.revision is None:
        raise typer.BadParameter(f"--revision {revision}: {located.folder} is a directory; revisions are the hub's")


SourceArgument = Annotated[
    str,
    typer.Argument(
        click_type=USER_PATH_OR_NAME,
        help="A super-adapter directory, a PEFT adapter (with --model and --nncf-config), or a base model; or a hub id.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        click_type=USER_PATH_OR_NAME,
        help="Base model, a directory or hub id. Default: the one the adapter's configuration names.",
    ),
]
SpaceOption = Annotated[
    Path | None,
    typer.Option(
        "--nncf-config",
        click_type=USER_PATH,
        help="Search space, an NNCF configuration. Default: the one in the super-adapter's directory; none for plain LoRA.",
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Revision of the base model on the hub. Default: the newest.")
]
SubnetOption = Annotated[
    str | None,
    typer.Option(
        "--subnet",
        click_type=USER_PATH_OR_NAME,
        help="heuristic, maximal, minimal, random:SEED or a sub-network JSON file. Default: heuristic; maximal for plain LoRA.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def seed_option(told: str) -> Any:
    """The option --seed.

    Args:
        told: What it is the seed of.

    Returns:
        The option; its values are those that every library takes.
    """
    return typer.Option("--seed", min=0, max=_LARGEST_SEED, help=told)


def numbers(option: str, text: str, least: int, most: int = _LARGEST) -> list[int]:
    """Whole numbers from a list with commas.

    Args:
        option: The option, for the error.
        text: As on the command line.
        least: The least number that will do.
        most: The largest.

    Returns:
        The numbers, each once.

    Raises:
        BadParameter: If it is no such list.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} {one_line(text)}: expected whole numbers, separated by commas") from None
    if min(found) < least:
        raise typer.BadParameter(f"{option} {text}: must be {least} or more")
    if max(found) > most:
        raise typer.BadParameter(f"{option} {text}: must be {most} or less")
    return list(dict.fromkeys(found))


def names(option: str, text: str) -> list[str]:
    """Names or paths from a list with commas.

    Args:
        option: The option, for the error.
        text: As on the command line.

    Returns:
        The names, at least one.

    Raises:
        BadParameter: If there is none.
    """
    found = [user_path(name.strip()) for name in text.split(",") if name.strip()]
    if not found:
        raise typer.BadParameter(f"{option} {one_line(text)}: names nothing")
    return found


def parse_properties(given: list[str]) -> dict[str, str]:
    """OpenVINO run-time properties from NAME=VALUE.

    Args:
        given: As on the command line.

    Returns:
        Values by name.

    Raises:
        BadParameter: If one has another form, or is there twice; every wrong one is listed.
    """
    found: dict[str, str] = {}
    wrong = []
    for one in given:
        name, equals, value = (part.strip() for part in one.partition("="))
        if not (equals and _NAME.fullmatch(name) and one.isprintable()):
            wrong.append(f"--property {one_line(ascii(one)[1:-1])}: expected NAME=VALUE")
        elif name in found:
            wrong.append(f"--property {name}: given twice")
        found[name] = value
    if wrong:
        raise typer.BadParameter("; ".join(wrong))
    return found
