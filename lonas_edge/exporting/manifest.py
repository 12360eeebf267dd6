"""The manifest of an exported directory, `lonas_edge.json`: what it was made of, and what its making found and took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lonas_edge.network.divergence import Parity
from lonas_edge.schema import Migration, Record
from lonas_edge.space.complexity import Sizes

MANIFEST = "lonas_edge.json"
COMPARED = {  # the parity figures, as people read them
    "materialized": "materialized model against the activated super-network",
    "stored": "this checkpoint against the materialized model",
    "ir_stored": "IR (computed in fp32) against the weights stored in it",
    "ir": "IR (computed in fp32) against the materialized model",
}


@dataclass(frozen=True)
class Origin:
    """A model or adapter that an export was made of: its hub id and revision, or a directory's name; SHA-256 by file."""

    name: str
    revision: str | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class Chosen:
    """The sub-network's name, and the hash of the search space it is of; None where there is none."""

    name: str
    search_space: str | None


@dataclass(frozen=True)
class BothSizes:
    """Sizes of the unpruned network and of the sub-network."""

    unpruned: Sizes
    subnetwork: Sizes


@dataclass(frozen=True)
class Step:
    """What a step of an export took: seconds, and the largest resident memory of the process by the end of it."""

    seconds: float
    peak_rss_bytes: int


def _second(content: dict[str, Any]) -> dict[str, Any]:
    """Version 1 was written with fewer fields at first, and one under another name."""
    graph = content.pop("child_peak_rss_bytes", None)
    return {"prompt": None, "graph_process_peak_rss_bytes": graph, **content}


@dataclass(frozen=True)
class Manifest(Record):
    """What `lonas_edge.json` holds.

    Attributes:
        stage: Where the export stopped, one of `STAGES`.
        weight_format: How the IR's weights are stored, or the checkpoint's dtype.
        subnetwork: The sub-network; `subnetwork.json` has its widths.
        base: The base model.
        adapter: The adapter; None where the base was exported alone.
        prompt: Name of the prompt that the adapter was trained with, where that is known.
        sizes: Of both networks.
        verified: Whether logits were compared.
        parity: What the comparisons gave, by the names in `COMPARED`.
        steps: Seconds and memory by step.
        graph_process_peak_rss_bytes: Memory of the process that converted the graph, where it is known.
        versions: Of what the result depends on.
    """

    NAME: ClassVar[str] = "manifest"
    VERSION: ClassVar[int] = 2
    MIGRATIONS: ClassVar[Mapping[int, Migration]] = {1: _second}
    AGAIN: ClassVar[str] = "Export it again."
    stage: str
    weight_format: str
    subnetwork: Chosen
    base: Origin
    adapter: Origin | None
    prompt: str | None
    sizes: BothSizes
    verified: bool
    parity: dict[str, Parity]
    steps: dict[str, Step]
    graph_process_peak_rss_bytes: int | None
    versions: dict[str, str]
