"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lonas_edge.options import COMMON, Checked, option

if TYPE_CHECKING:
    from lonas_edge.network.source import Located

SUBNET_HELP = "Sub-network: heuristic, maximal, minimal, random:SEED, or a JSON file."


def revision_option() -> Any:
    """The option --revision."""
    return option(None, panel="Model", help="Revision of the base model on the hub.", unset="the newest")


def check_revision(revision: str | None, located: "Located") -> None:
    """Refuse the revision of a directory.

    Raises:
        UsageError: If the model is not from a hub.
    """
    if revision and located.revision is None:
        raise click.UsageError(f"--revision {revision}: {located.folder} is a directory; only hub models have revisions")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Checked):
    """The network that a command works on."""

    source: str = option(
        argument=True,
        path=True,
        help="Super-adapter directory, PEFT adapter (with --model and --nncf-config) or base model; or a hub id.",
    )
    model: str | None = option(
        None,
        panel="Model",
        path=True,
        metavar="MODEL",
        help="Base model, a directory or hub id.",
        unset="the one that the adapter's configuration names",
    )
    nncf_config: Path | None = option(
        None,
        panel="Model",
        metavar="FILE",
        help="Search space, an NNCF configuration.",
        unset="the super-adapter's own; none for plain LoRA",
    )
    revision: str | None = revision_option()


@dataclass(frozen=True, kw_only=True)
class SubnetOptions(Checked):
    """The sub-network."""

    subnet: str | None = option(
        None,
        panel=COMMON,
        path=True,
        metavar="SUBNET",
        help=SUBNET_HELP,
        unset="heuristic; maximal for plain LoRA",
    )


@dataclass(frozen=True, kw_only=True)
class JsonOptions(Checked):
    """What is printed."""

    json: bool = option(False, panel="Output", help="Print one JSON document on standard output.")
