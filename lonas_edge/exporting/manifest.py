"""The manifest of an exported directory, `lonas_edge.json`: its inputs, and the results of the export."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lonas_edge.data.pooling import Pooling
from lonas_edge.exporting.clients import GRAPH_FILE
from lonas_edge.exporting.parity import Parity
from lonas_edge.families import CAUSAL_LM
from lonas_edge.files import sha256
from lonas_edge.schema import Record
from lonas_edge.space.picture import Layer
from lonas_edge.space.subnetwork import SearchOrigin, Sizes
from lonas_edge.tables import Table

MANIFEST, DRAFT = "lonas_edge.json", "draft.json"  # records of an export, and of a draft model
CARD = "README.md"
REWRITTEN = (MANIFEST, CARD, GRAPH_FILE)  # changed later, by commands or users; their hashes are not kept
COMPARED = {  # titles of the parity figures
    "materialized": "materialized model vs. activated super-network",
    "stored": "this checkpoint vs. materialized model",
    "ir_uncompressed": "IR before compression (computed in fp32) vs. materialized model",
    "ir_stored": "IR (computed in fp32) vs. the weights stored in it",
    "ir": "IR (computed in fp32) vs. materialized model",
    "ir_groups": "IR with INT8 activations in groups vs. computed in fp32",
}


@dataclass(frozen=True)
class Origin:
    """The base model or the adapter: its hub id and revision, or a directory's name; SHA-256 by file."""

    name: str
    revision: str | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class Chosen:
    """The sub-network: its name, the hash of its search space, and the search that proposed it; None without these."""

    name: str
    search_space: str | None
    origin: SearchOrigin | None


@dataclass(frozen=True)
class Compression:
    """Storage of a share of the weights; `group_size` is None for formats without groups."""

    weight_format: str
    group_size: int | None
    share: float


@dataclass(frozen=True)
class Calibrated:
    """Data of the compression.

    Attributes:
        method: `METHOD`, for the layers; None if data rounded the head alone.
        data: Name of the file.
        sha256: Its hash.
        prompts: Number of its prompts.
        tokens: Tokens of these.
    """

    method: str | None
    data: str
    sha256: str
    prompts: int
    tokens: int


@dataclass(frozen=True)
class BothSizes:
    """Sizes of the unpruned network and of the sub-network."""

    unpruned: Sizes
    subnetwork: Sizes


@dataclass(frozen=True)
class Step:
    """Seconds of a step, and the largest resident memory of the process up to its end."""

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class FileHash:
    """Size and hash of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileHash":
        """Read a file."""
        return cls(path.stat().st_size, sha256(path))


def hash_files(folder: Path) -> dict[str, FileHash]:
    """Hash the files of an output, `REWRITTEN` ones excepted, by their path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = {path.relative_to(folder).as_posix(): path for path in files if path.name not in REWRITTEN}
    return {name: FileHash.of(path) for name, path in kept.items()}


@dataclass(frozen=True)
class Manifest(Record):
    """Content of `lonas_edge.json`.

    Attributes:
        stage: One of `STAGES`.
        weight_format: The IR's format or the checkpoint's dtype.
        compression: Storage of the layers' weights in an IR, the largest share first; empty for a checkpoint.
        head: Storage of the head by --head-format; None without it.
        adapter: The adapter; None for a base model alone.
        pipeline: Task name of model hubs: text-generation, text-classification or feature-extraction.
        task: GLUE task of the training, if any.
        prompt: Name of the prompt template of the adapter's training, if known.
        layers: Remaining part of each decoder layer.
        fused: Number of the IR's matrices that are part of others.
        verified: Whether logits or hidden states were compared.
        parity: Results of the comparisons, by the names in `COMPARED`.
        files: Size and hash of each file by path.
        group_size: Columns of a group, as requested; None for the format's own choice.
        pooling: Pooling of an embedding model; None for others.
        renumbered: Whether whole layers are removed, so that the others have new numbers.
    """

    NAME: ClassVar[str] = "manifest"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Export it again."
    stage: str
    weight_format: str
    compression: tuple[Compression, ...]
    calibrated: Calibrated | None
    subnetwork: Chosen
    base: Origin
    adapter: Origin | None
    pipeline: str
    task: str | None
    prompt: str | None
    sizes: BothSizes
    layers: tuple[Layer, ...]
    fused: int
    verified: bool
    parity: dict[str, Parity]
    steps: dict[str, Step]
    graph_process_peak_rss_bytes: int | None
    versions: dict[str, str]
    files: dict[str, FileHash]
    head: Compression | None = None
    group_size: int | None = None
    pooling: Pooling | None = None
    renumbered: bool = False

    @property
    def parity_table(self) -> Table:
        """The comparisons of a verified export."""
        first, causal = next(iter(self.parity.values())), self.pipeline == CAUSAL_LM.pipeline_tag
        agreement = ["same top token" if causal else "same class"] * (first.top1_agreement is not None)
        headings = [first.compared, "largest difference", first.measure, *agreement, "positions" if causal else "texts"]
        rows = []
        for name, parity in self.parity.items():
            figures = [f"{parity.max_logit_difference:.2e}", f"{parity.distance:.2e}"]
            if agreement:
                figures.append(f"{parity.top1_agreement or 0:.1%}")
            rows.append([COMPARED.get(name, name), *figures, parity.positions])
        return Table(headings, rows, title="Parity")

    @property
    def formats(self) -> str:
        """The weight format for people; all formats if layers have several."""
        formats = dict.fromkeys(part.weight_format for part in self.compression)
        return " and ".join(formats) if len(formats) > 1 else self.weight_format
