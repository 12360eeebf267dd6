"""Options that several commands share."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from lonas_edge.errors import LonasEdgeError

if TYPE_CHECKING:
    from rich.status import Status


def loading() -> "Status":
    """A spinner on standard error, for the seconds that heavy imports take."""
    from rich.console import Console

    return Console(stderr=True).status("Loading")


def choice(names: Iterable[str]) -> click.Choice:
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


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A super-adapter directory, a PEFT adapter (with --model and --nncf-config), or a base model; or a hub id.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Base model, a directory or hub id. Default: the one the adapter's configuration names."),
]
SpaceOption = Annotated[
    Path | None,
    typer.Option(
        "--nncf-config",
        help="Search space, an NNCF configuration. Default: the one in the super-adapter's directory; none for plain LoRA.",
    ),
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Revision of the base model on the hub.")]
SubnetOption = Annotated[
    str | None,
    typer.Option(
        "--subnet",
        help="heuristic, maximal, minimal, random:SEED or a sub-network JSON file. Default: heuristic; maximal for plain LoRA.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def parse_properties(given: list[str]) -> dict[str, str]:
    """OpenVINO run-time properties from NAME=VALUE.

    Args:
        given: As on the command line.

    Returns:
        Values by name.

    Raises:
        BadParameter: If one has another form.
    """
    wrong = [one for one in given if "=" not in one]
    if wrong:
        raise typer.BadParameter(f"--property {wrong[0]}: expected NAME=VALUE")
    return {name.strip(): value.strip() for name, value in (one.split("=", 1) for one in given)}
