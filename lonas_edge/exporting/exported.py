"""Open an exported directory in a later command, check its files, and change its small ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lonas_edge.data.pooling import Pooling, pooling_of
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.manifest import CARD, MANIFEST, FileHash, Manifest
from lonas_edge.exporting.model_card import model_card, replace_section
from lonas_edge.families import (
    CAUSAL_LM,
    CLASSIFICATION,
    EMBEDDING,
    MODEL_KINDS,
    ModelKind,
    context_of,
    family_of_config,
    tokens_of,
)
from lonas_edge.files import check_model_folder, exists, read_json, read_text, replace_text
from lonas_edge.ir import MODEL, WEIGHTS

_TOKENIZER = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_HIDDEN = re.compile(r'names="[^"]*\blast_hidden_state\b')  # the output of optimum-intel's `feature-extraction`
_POOLED = re.compile(r'names="[^"]*\bsentence_embedding\b')  # the output with --library sentence_transformers


@dataclass(frozen=True)
class Exported:
    """A directory that OpenVINO clients run; without a `manifest` if another tool wrote it."""

    folder: Path
    manifest: Manifest | None
    config: Mapping[str, Any]
    embeds: bool = False  # whether another tool's IR gives hidden states

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return tokens_of(self.config)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, where the configuration names it."""
        return context_of(self.config)

    @property
    def kind(self) -> ModelKind:
        """Kind of the model: as recorded, else by the IR's output, else by its configuration; a language model's by default."""
        if self.manifest:
            return next((kind for kind in MODEL_KINDS if kind.pipeline_tag == self.manifest.pipeline), CAUSAL_LM)
        family = family_of_config(self.config)
        if self.embeds or not family:
            return EMBEDDING if self.embeds else CAUSAL_LM
        return CLASSIFICATION if family.kind is EMBEDDING else family.kind

    @property
    def pooling(self) -> Pooling | None:
        """Pooling of an embedding model: as recorded, else by its files, else the mean, with a warning; else None."""
        if self.kind is not EMBEDDING:
            return None
        return (self.manifest.pooling if self.manifest else None) or pooling_of(self.folder)

    @property
    def own_manifest(self) -> Manifest:
        """Its manifest; an error if another tool wrote the directory."""
        if self.manifest is None:
            raise _not_ours(self.folder)
        return self.manifest

    @property
    def weight_format(self) -> str:
        """Storage of its weights."""
        if self.manifest:
            return self.manifest.weight_format
        config = read_json(self.folder / "openvino_config.json") if (self.folder / "openvino_config.json").exists() else {}
        return str(config.get("dtype") or "as stored")


def open_exported(folder: Path, ours: bool = True, kind: ModelKind | None = None) -> Exported:
    """Open an exported directory and check its files.

    Args:
        folder: The directory.
        ours: Whether `lonas-edge export` must have written it, without later changes; otherwise any IR of a model will do.
        kind: Required kind of its model; any when None.

    Raises:
        LonasEdgeError: If it is none, or files are missing or damaged; all are listed.
    """
    if not exists(folder) or not folder.is_dir():
        found = "is a file" if exists(folder) else "no such directory"
        raise LonasEdgeError(f"{folder}: {found}; expected a directory that `lonas-edge export` wrote")
    check_model_folder(folder)
    if ours and not (folder / MANIFEST).exists():
        raise _not_ours(folder)
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    if manifest and manifest.stage != "ir":
        raise LonasEdgeError(
            f"{folder}: a {manifest.stage} export; expected an IR. Export again without --stage {manifest.stage}."
        )
    problems = [f"{name}: missing" for name in (MODEL, WEIGHTS, "config.json", *_TOKENIZER) if not (folder / name).exists()]
    problems += changed_files(folder, manifest) if manifest and not problems else []
    raise_all(f"{folder}: the exported directory is damaged:", problems, "Export it again.")
    config = read_json(folder / "config.json")
    if "vocab_size" not in config:
        raise LonasEdgeError(
            f"{folder / 'config.json'}: no vocab_size; expected the configuration of a language model or encoder"
        )
    graph = "" if manifest else read_text(folder / MODEL, "the IR")
    embeds = bool(_HIDDEN.search(graph))
    if _POOLED.search(graph):
        raise LonasEdgeError(
            f"{folder / MODEL}: gives pooled embeddings; expected hidden states. Export the model again with `optimum-cli "
            "export openvino --task feature-extraction --library transformers`."
        )
    exported = Exported(folder, manifest, config, embeds)
    if kind and exported.kind != kind:
        raise LonasEdgeError(f"{folder}: a {exported.kind.name}; expected a {kind.name}")
    return exported


def _not_ours(folder: Path) -> LonasEdgeError:
    inside = " or ".join(sorted(str(path.parent) for path in folder.glob(f"*/{MANIFEST}")))  # of `compress`
    advice = f". Pass {inside}" if inside else ""
    return LonasEdgeError(f"{folder}: no {MANIFEST}; expected a directory that `lonas-edge export` wrote{advice}")


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """List the files of an exported directory that are missing or changed, one line each."""
    changed = []
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{name}: missing")
        elif (size := path.stat().st_size) != expected.bytes:
            changed.append(f"{name}: changed: expected {expected.bytes:,} bytes ({MANIFEST}), found {size:,}")
        elif _hash_once(path, path.stat().st_mtime_ns) != expected:
            changed.append(f"{name}: changed: its SHA-256 is not the one in {MANIFEST}, {expected.sha256[:12]}…")
    return changed


@lru_cache(maxsize=1024)
def _hash_once(path: Path, _changed_ns: int) -> FileHash:
    """Hash a file: a command opens a directory several times, and hashing 5.7 GB takes 4 seconds."""
    return FileHash.of(path)


def update_card(folder: Path, heading: str, body: str) -> None:
    """Replace a section of the model card, see `replace_section`, and keep what users wrote in others."""
    path = folder / CARD
    card = read_text(path, "the model card") if path.exists() else model_card(Manifest.read(folder / MANIFEST))
    replace_text(path, replace_section(card, heading, body))
