"""The manifest of an exported directory, `lonas_edge.json`: what it was made of, and what its making found and took."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lonas_edge.exporting.evaluations import FILE as EVALUATIONS
from lonas_edge.files import sha256
from lonas_edge.ir import RUNTIME, WEIGHTS
from lonas_edge.network.divergence import Parity, TextDivergence
from lonas_edge.network.solved import Solved
from lonas_edge.schema import Record
from lonas_edge.space.complexity import Sizes
from lonas_edge.space.picture import Layer
from lonas_edge.space.subnetwork import SearchOrigin

MANIFEST = "lonas_edge.json"
CARD = "README.md"
DRAFT = "draft"  # the directory of a draft, in the main model's
REWRITTEN = (MANIFEST, CARD, EVALUATIONS, RUNTIME)  # written anew by later commands; no hash of them is kept
COMPARED = {  # the parity figures, as people read them
    "materialized": "materialized model against the activated super-network",
    "stored": "this checkpoint against the materialized model",
    "ir_uncompressed": "IR before compression (computed in fp32) against the materialized model",
    "ir_stored": "IR (computed in fp32) against the weights stored in it",
    "ir": "IR (computed in fp32) against the materialized model",
    "gguf_stored": "weights stored in the GGUF file against the materialized model",
    "llama_cpp": "llama.cpp against the weights stored in the GGUF file",
}


@dataclass(frozen=True)
class Origin:
    """A model or adapter that an export was made of: its hub id and revision, or a directory's name; SHA-256 by file."""

    name: str
    revision: str | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class Chosen:
    """The sub-network.

    Attributes:
        name: What it is called.
        search_space: Hash of the search space it is of; None where there is none.
        origin: How a search found it, if one did.
    """

    name: str
    search_space: str | None
    origin: SearchOrigin | None


@dataclass(frozen=True)
class Compression:
    """How a part of the weights between embedding and head is stored.

    Attributes:
        weight_format: Name of the format.
        group_size: Columns that share a scale, -1 where whole rows do; None where the format knows no groups.
        share: Share of those weights.
    """

    weight_format: str
    group_size: int | None
    share: float


@dataclass(frozen=True)
class Calibrated:
    """What compression looked at.

    Attributes:
        method: Name of the method, one of `METHODS`.
        data: Name of the file of prompts.
        sha256: Its hash.
        prompts: How many there were.
        tokens: How many tokens those have.
    """

    method: str
    data: str
    sha256: str
    prompts: int
    tokens: int


@dataclass(frozen=True)
class Draft:
    """A draft for speculative decoding, in the directory `DRAFT`; its own manifest there says the rest.

    Attributes:
        base: Name of the model that it was made of.
        subnetwork: Name of its sub-network.
        weight_format: How its weights are stored.
        parameters: Parameters of its materialized model.
        bytes: Of the file of its weights.
    """

    base: str
    subnetwork: str
    weight_format: str
    parameters: int
    bytes: int

    @classmethod
    def of(cls, folder: Path) -> "Draft":
        """That of an exported directory."""
        own = Manifest.read(folder / MANIFEST)
        stored = (folder / WEIGHTS).stat().st_size
        return cls(own.base.name, own.subnetwork.name, own.weight_format, own.sizes.subnetwork.parameters, stored)


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


@dataclass(frozen=True)
class Written:
    """A file of the output, as it was written."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Written":
        """As it is now."""
        return cls(path.stat().st_size, sha256(path))


def written_files(folder: Path) -> dict[str, tuple[Written, ...]]:
    """What is to be kept of an output's files.

    Args:
        folder: The output, all written but what is `REWRITTEN`.

    Returns:
        By path from the directory.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = {path.relative_to(folder).as_posix(): path for path in files if path.name not in REWRITTEN}
    return {name: (Written.of(path),) for name, path in kept.items()}


def record_rewritten(folder: Path, name: str, new: Path) -> None:
    """Keep what a file of an output is about to be, and what it was: whenever this is interrupted, it is one of them.

    Args:
        folder: An exported directory.
        name: The file, there.
        new: What takes its place.
    """
    manifest = Manifest.read(folder / MANIFEST)
    if manifest.files is not None:
        files = {**manifest.files, name: (Written.of(new), Written.of(folder / name))}
        replace(manifest, files=files).write(folder / MANIFEST)


@dataclass(frozen=True)
class Manifest(Record):
    """What `lonas_edge.json` holds.

    Attributes:
        stage: Where the export stopped, one of `STAGES`.
        weight_format: How the IR's weights are stored, the checkpoint's dtype, or the type of the GGUF file's matrices.
        compression: How the weights of IR or GGUF file between embedding and head are stored, the format with the most first;
            nothing of a checkpoint, and where an older version wrote it.
        calibrated: What compression looked at; None where it looked at nothing.
        subnetwork: The sub-network; `subnetwork.json` has its widths.
        draft: The draft beside it, where there is one.
        base: The base model.
        adapter: The adapter; None where the base was exported alone.
        solved: What solving gave; None where nothing was solved.
        pipeline: What model hubs call what the model is for: text-generation, text-classification.
        task: The task of GLUE that it was trained on, where it was.
        prompt: Name of the prompt that the adapter was trained with, where that is known.
        sizes: Of both networks.
        layers: What is left of each decoder layer; none where an older version wrote it.
        fused: How many of the IR's weight matrices went into others that multiply the same input.
        verified: Whether logits were compared.
        parity: What the comparisons gave, by the names in `COMPARED`.
        texts: How texts of the IR compare with those of the same sub-network's fp32 IR, both computed in fp32; None where
            none were generated.
        steps: Seconds and memory by step.
        graph_process_peak_rss_bytes: Memory of the process that converted the graph, where it is known.
        versions: Of what the result depends on.
        files: What each file of the output is, by path; of one that `bench --tune` wrote anew, what it was before, too. None
            where an older version wrote it.
    """

    NAME: ClassVar[str] = "manifest"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Export it again."
    stage: str
    weight_format: str
    compression: tuple[Compression, ...]
    calibrated: Calibrated | None
    subnetwork: Chosen
    draft: Draft | None
    base: Origin
    adapter: Origin | None
    solved: Solved | None
    pipeline: str
    task: str | None
    prompt: str | None
    sizes: BothSizes
    layers: tuple[Layer, ...]
    fused: int
    verified: bool
    parity: dict[str, Parity]
    texts: TextDivergence | None
    steps: dict[str, Step]
    graph_process_peak_rss_bytes: int | None
    versions: dict[str, str]
    files: dict[str, tuple[Written, ...]] | None

    @property
    def formats(self) -> str:
        """The weight format as people read it: all that the layers have, where they have several."""
        found = dict.fromkeys(part.weight_format for part in self.compression)
        return " and ".join(found) if len(found) > 1 else self.weight_format
