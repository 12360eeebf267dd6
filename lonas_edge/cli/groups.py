"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from lonas_edge.options import Options, PathOrName, from_text, option, user_path

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "nncf_config", _PACKAGE.parent / "nncf_config")  # in a wheel, and in a checkout
SUBNET_HELP = "Sub-network: heuristic, maximal, minimal, random:SEED, or a JSON file."
SUBNET_UNSET = "heuristic; maximal without a search space"


def search_space(text: str) -> Path:
    """The file of a search space: a path, or the name of one that lonas-edge ships (`llama_7b`)."""
    path = Path(user_path(text))
    shipped = [folder / f"{text}.json" for folder in _SHIPPED]
    return next((each for each in shipped if not path.exists() and each.is_file()), path)


SearchSpaceFile = Annotated[Path, from_text(search_space)]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """The base model and the search space of an adapter."""

    model: PathOrName | None = option(
        None,
        panel="Model",
        metavar="MODEL",
        help="Base model, a directory or hub id (ID or ID@REVISION).",
        unset="the one that the adapter's configuration names",
    )
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
