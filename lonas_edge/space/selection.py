"""Pick a sub-network by name or from its JSON file."""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning, raise_all
from lonas_edge.files import exists
from lonas_edge.schema import Record
from lonas_edge.space.elasticity import Elasticity
from lonas_edge.space.subnetwork import SearchOrigin, Subnetwork

FILE = "subnetwork.json"  # an exported directory keeps its sub-network under this name
DEFAULT = "heuristic"
_UNNAMED = (
    "the widths name neither their groups nor a search space; they are taken in the order of this search space's groups. "
    'Write "widths": {group name: width, …}; `lonas-edge inspect --json` shows the names.'
)


@dataclass(frozen=True)
class SubnetworkRecord(Record):
    """A sub-network file. `{"widths": {"layers.0.mlp.width": 768, …}}` is one; it may have other fields."""

    NAME: ClassVar[str] = "subnetwork"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = 'Expected {"widths": {group name: width, …}}.'
    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}
    widths: dict[str, int] | tuple[int, ...]  # by group name; or in group order, which `search_space` should then accompany
    name: str | None = None  # without one it is called by its file name
    search_space: str | None = None  # hash of the search space; checked for a list of widths
    origin: SearchOrigin | None = None  # how a search found it, if one did

    @classmethod
    def of(cls, subnetwork: Subnetwork) -> "SubnetworkRecord":
        """The record of a sub-network."""
        return cls(subnetwork.by_group, subnetwork.name, subnetwork.elasticity.space.hash, subnetwork.origin)


def is_name(choice: str) -> bool:
    """Whether a choice of `select` is a name; a file or directory of that name is ignored."""
    return choice in ("maximal", DEFAULT, "minimal") or choice.startswith("random:")


def select(elasticity: Elasticity, choice: str | None = None) -> Subnetwork:
    """Pick a sub-network by name or from a JSON file; by default heuristic, or maximal in a space without groups.

    `maximal` takes the first width of every group, `minimal` the last, `heuristic` the one at index (n - 1) // 2 of n
    (Muñoz et al. 2024), `random:SEED` draws each uniformly.
    """
    groups = elasticity.space.groups
    choice = choice or (DEFAULT if groups else "maximal")
    if not groups and choice != "maximal":
        raise LonasEdgeError(
            f"sub-network {choice!r}: without a search space there is only the maximal network. Pass --nncf-config FILE."
        )
    if choice.startswith("random:"):
        try:
            draw = random.Random(int(choice.removeprefix("random:")))
        except ValueError:
            raise LonasEdgeError(f"sub-network {choice!r}: expected random:SEED with a whole number") from None
        return Subnetwork(elasticity, tuple(draw.choice(group.widths) for group in groups), choice)
    if not is_name(choice):
        return read_subnetwork(Path(choice), elasticity)
    return Subnetwork(elasticity, elasticity.space.preset(choice), choice)


def read_subnetwork(path: Path, elasticity: Elasticity) -> Subnetwork:
    """Read a sub-network file and check that it belongs to a search space; without a `name` it is called by its file name."""
    if not exists(path):
        raise LonasEdgeError(
            f"sub-network {str(path)[:300]!r}: neither a name (heuristic, maximal, minimal, random:SEED) nor an existing file"
        )
    record, names = SubnetworkRecord.read(path), elasticity.group_names
    headline = f"{path}: not a sub-network of this search space:"
    widths = record.widths
    if isinstance(widths, dict):
        errors = [f"{name}: not a group of the search space" for name in widths if name not in names]
        raise_all(headline, errors + [f"{name}: missing in the file" for name in names if name not in widths])
        widths = tuple(widths[name] for name in names)
        raise_all(headline, width_errors(elasticity, widths))
    else:
        raise_all(headline, width_errors(elasticity, widths, record.search_space))
        if record.search_space is None:
            warnings.warn(f"{path}: {_UNNAMED}", LonasEdgeWarning, stacklevel=2)
    return Subnetwork(elasticity, widths, record.name or path.name, record.origin)


def width_errors(elasticity: Elasticity, widths: Sequence[int], search_space: str | None = None) -> list[str]:
    """List the reasons why widths, in group order and for the space of this hash (if known), are no sub-network of a space."""
    space, errors = elasticity.space, []
    if search_space not in (None, space.hash):
        errors.append(f"it was written for search space {str(search_space)[:12]}, and this one is {space.hash[:12]}")
    if len(widths) != len(space.groups):
        return [*errors, f"{len(widths)} widths; the search space has {len(space.groups)} groups"]
    for name, width, group in zip(elasticity.group_names, widths, space.groups, strict=True):
        if width not in group.widths:
            errors.append(f"{name}: {width} is not one of {list(group.widths)}")
    return errors
