"""A sub-network: one width picked from each group of a search space."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, ClassVar

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import exists
from lonas_edge.schema import Migration, Record
from lonas_edge.space.search_space import SearchSpace

FILE = "subnetwork.json"  # an exported directory keeps its sub-network under this name
DEFAULT = "heuristic"
MAX_NAME = 200  # characters; model cards and tables show it


@dataclass(frozen=True)
class Found:
    """How a search found a sub-network.

    Attributes:
        quality: Name of the quality.
        quality_value: In its unit.
        cost: Name of the cost.
        cost_value: In its unit.
        units: Of both, by name.
        weight_format: Of the IR whose cost it is.
        compressed: Whether the quality is that of the network as the IR stores it, or before compression.
        origin: What proposed it: `seed:…`, a sampler, `refined`.
        evaluation: Its place among the evaluations, from 0 on.
        evaluations: How many there were.
        prompts: How many prompts each was scored on.
        super_adapter: SHA-256 of the adapter's files by name, where there is one; another adapter's sub-network is another.
    """

    quality: str
    quality_value: float
    cost: str
    cost_value: float
    units: dict[str, str]
    weight_format: str
    compressed: bool
    origin: str
    evaluation: int
    evaluations: int
    prompts: int
    super_adapter: dict[str, str] | None


def _second(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1, and what others write, do not say how it was found."""
    return {**content, "found": None}


@dataclass(frozen=True)
class SubnetworkRecord(Record):
    """A sub-network file. `{"widths": [w0, w1, …]}` is one, written by hand or by other programs; other fields may be there.

    Attributes:
        widths: In group order.
        name: What it is called; a file without is called by its own name.
        search_space: Hash of the search space it is of, checked where there is one.
        found: How a search found it, if one did.
    """

    NAME: ClassVar[str] = "subnetwork"
    VERSION: ClassVar[int] = 2
    MIGRATIONS: ClassVar[Mapping[int, Migration]] = {1: _second}
    AGAIN: ClassVar[str] = 'Expected {"widths": [w0, w1, …]}, whole numbers in group order.'
    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}
    widths: tuple[int, ...]
    name: str | None = None
    search_space: str | None = None
    found: Found | None = None


@dataclass(frozen=True)
class Subnetwork:
    """What was chosen.

    Attributes:
        widths: In group order.
        name: What they were chosen by.
        found: How a search found them, if one did.
    """

    widths: tuple[int, ...]
    name: str
    found: Found | None = None

    def record(self, space: SearchSpace) -> SubnetworkRecord:
        """As it is written to disk, with the hash of its search space."""
        return SubnetworkRecord(self.widths, self.name, space.hash, self.found)


def is_name(choice: str) -> bool:
    """Whether a choice is a name of `select`'s, and so no path: a directory may well be called `minimal`.

    Args:
        choice: As of `select`.

    Returns:
        Whether it is.
    """
    return choice in ("maximal", DEFAULT, "minimal") or choice.startswith("random:")


def select(space: SearchSpace, choice: str | None = None) -> Subnetwork:
    """Pick a sub-network by name or from a file.

    `maximal` takes the first width of every group, `minimal` the last, `heuristic` the one at index (n - 1) // 2 of n
    (Muñoz et al. 2024), `random:SEED` draws each uniformly.

    Args:
        space: The search space.
        choice: heuristic, maximal, minimal, random:SEED, or the path of a sub-network JSON file. None is heuristic, and
            maximal where the space has no groups (a plain LoRA adapter).

    Returns:
        The sub-network.

    Raises:
        LonasEdgeError: If there is no such sub-network in the space.
    """
    if not space.groups and choice in (None, "maximal"):
        return Subnetwork((), "maximal")
    choice = choice or DEFAULT
    if not space.groups:
        raise LonasEdgeError(
            f"sub-network {choice!r}: there is no search space, so there is the maximal network only. "
            "Give the one the super-adapter was trained with (--nncf-config FILE)."
        )
    if choice == "maximal":
        return Subnetwork(tuple(group.widths[0] for group in space.groups), choice)
    if choice == "minimal":
        return Subnetwork(tuple(group.widths[-1] for group in space.groups), choice)
    if choice == "heuristic":
        return Subnetwork(tuple(group.widths[(len(group.widths) - 1) // 2] for group in space.groups), choice)
    if choice.startswith("random:"):
        return _random(space, choice)
    return read_subnetwork(Path(choice), space)


def _random(space: SearchSpace, choice: str) -> Subnetwork:
    try:
        generator = random.Random(int(choice.removeprefix("random:")))
    except ValueError:
        raise LonasEdgeError(f"sub-network {choice!r}: expected random:SEED with a whole number") from None
    return Subnetwork(tuple(generator.choice(group.widths) for group in space.groups), choice)


def read_subnetwork(path: Path, space: SearchSpace) -> Subnetwork:
    """Read a sub-network file, and check that it is of a search space.

    Args:
        path: The file.
        space: The search space it must belong to.

    Returns:
        The sub-network, named by the file's own `name` or else by its file name.

    Raises:
        LonasEdgeError: If the file cannot be read or does not belong to the space; every fault is listed.
    """
    if not exists(path):
        raise LonasEdgeError(
            f"sub-network {str(path)[:300]!r}: neither a name (heuristic, maximal, minimal, random:SEED) nor an existing file"
        )
    record = SubnetworkRecord.read(path)
    problems = misfits(space, record.widths, record.search_space)
    if record.name is not None and not (record.name.isprintable() and len(record.name) <= MAX_NAME):
        problems.append(f"name: expected at most {MAX_NAME} printable characters, found {shortened(record.name)}")
    problems += _found_faults(record.found) if record.found else []
    raise_all(f"{path}: not a sub-network of this search space:", problems)
    return Subnetwork(record.widths, record.name or path.name, record.found)


def misfits(space: SearchSpace, widths: Sequence[int], search_space: str | None = None) -> list[str]:
    """Why widths are not those of a sub-network of a search space.

    Args:
        space: The search space.
        widths: In group order.
        search_space: Hash of the search space that they were written for, where it is known.

    Returns:
        Every fault.
    """
    problems = []
    if search_space not in (None, space.hash):
        problems.append(f"it was written for search space {str(search_space)[:12]}, and this one is {space.hash[:12]}")
    if len(widths) != len(space.groups):
        return [*problems, f"{len(widths)} widths; the search space has {len(space.groups)} groups"]
    return problems + [
        f"group {index} ({group.modules[0]}, …): width {shortened(width)} is not one of {list(group.widths)}"
        for index, (width, group) in enumerate(zip(widths, space.groups, strict=True))
        if width not in group.widths
    ]


def _found_faults(found: Found) -> list[str]:
    """Model cards show all of it."""
    texts = {name: value for name, value in asdict(found).items() if isinstance(value, str)}
    texts |= {f"units.{name}": unit for name, unit in found.units.items()}
    return [
        f"found.{name}: expected at most {MAX_NAME} printable characters, found {shortened(text)}"
        for name, text in texts.items()
        if not (text.isprintable() and len(text) <= MAX_NAME)
    ]
