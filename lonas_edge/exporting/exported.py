"""Open an exported directory in a later command, check its files, and change its small ones."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import Field
from typing_extensions import TypedDict

from lonas_edge.data.pooling import Pooling, pooling_of
from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning, raise_all
from lonas_edge.exporting.evaluations import FILE, Evaluation, Evaluations
from lonas_edge.exporting.manifest import CARD, MANIFEST, Manifest, Written
from lonas_edge.exporting.model_card import model_card, sections, updated
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
from lonas_edge.processes import interrupts_deferred
from lonas_edge.schema import field_faults

_COMPARISON = "## Compared with other files of this model"  # of `compress`: the last section of a card
_TOKENIZER = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_HIDDEN = re.compile(r'names="[^"]*\blast_hidden_state\b')  # the output of optimum-intel's `feature-extraction`
_POOLED = re.compile(r'names="[^"]*\bsentence_embedding\b')  # the output with --library sentence_transformers
_XML_LIMIT = 2**28  # bytes; a 7B model's has 5 MB


class _ConfigFields(TypedDict, total=False):
    vocab_size: Required[Annotated[int, Field(ge=1)]]
    max_position_embeddings: Annotated[int, Field(ge=1)] | None


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
        raise LonasEdgeError(f"{folder}: no such directory; expected one that `lonas-edge export` wrote")
    check_model_folder(folder)
    if ours and not (folder / MANIFEST).exists():
        raise _not_ours(folder)
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    if manifest and manifest.stage != "ir":
        raise LonasEdgeError(
            f"{folder}: a {manifest.stage} export; expected an IR. Export again without --stage {manifest.stage}."
        )
    problems = [f"{name}: missing" for name in (MODEL, WEIGHTS, "config.json", *_TOKENIZER) if not (folder / name).exists()]
    problems += [] if problems else _ir_faults(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    problems += [f"config.json: {fault}" for fault in field_faults(_ConfigFields, config)]
    problems += file_faults(folder, manifest) if manifest and not problems else []
    raise_all(f"{folder}: the exported directory is damaged:", problems, "Export it again.")
    graph = "" if manifest else read_text(folder / MODEL, "the IR", _XML_LIMIT)
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


def _ir_faults(folder: Path) -> list[str]:
    """Check that the .xml is complete and the .bin long enough. The .xml may be large, so it is not parsed."""
    text = read_text(folder / MODEL, "the IR", _XML_LIMIT)
    if not text.rstrip().endswith("</net>"):
        return [f"{MODEL}: truncated"]
    ends = [int(offset) + int(size) for offset, size in re.findall(r'offset="(\d{1,18})"[^>]*?\bsize="(\d{1,18})"', text)]
    size = (folder / WEIGHTS).stat().st_size
    if ends and size < max(ends):
        return [f"{WEIGHTS}: expected at least {max(ends):,} bytes, found {size:,}"]
    return []


def file_faults(folder: Path, manifest: Manifest) -> list[str]:
    """List the files of an exported directory that are missing or changed, one line each."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    faults = []
    for name, expected in manifest.files.items():
        if name not in paths:
            faults.append(f"{name}: missing")
        elif (size := paths[name].stat().st_size) != expected.bytes:
            faults.append(f"{name}: changed: expected {expected.bytes:,} bytes ({MANIFEST}), found {size:,}")
        elif _written(paths[name], paths[name].stat().st_mtime_ns) != expected:
            faults.append(f"{name}: changed: its SHA-256 is not the one in {MANIFEST}, {expected.sha256[:12]}…")
    return faults


@lru_cache(maxsize=1024)
def _written(path: Path, _changed_ns: int) -> Written:
    """Measure a file once: a command opens a directory several times, and hashing 5.7 GB takes 4 seconds."""
    return Written.of(path)


def write_card(folder: Path, comparison: str | None = None, evaluations: Evaluations | None = None) -> None:
    """Write the model card of an exported directory again, and keep what users changed in it.

    Args:
        folder: The directory.
        comparison: A comparison with other files as Markdown; by default the card keeps the one that it has.
        evaluations: Its next evaluations; by default the ones that it has.
    """
    own = sections(read_text(folder / CARD, "the model card")) if (folder / CARD).exists() else {}
    manifest, before = Manifest.read(folder / MANIFEST), Evaluations.of(folder)
    written, new = sections(model_card(manifest, before)), sections(model_card(manifest, evaluations or before))
    if comparison is not None:
        written[_COMPARISON], new[_COMPARISON] = own.get(_COMPARISON, ""), f"{_COMPARISON}\n\n{comparison.strip()}"
    card, kept = updated(own, written, new)
    for title in kept:
        warnings.warn(
            f"{folder / CARD}: {title!r} was edited and stays as it is, out of date. Delete this section; the same "
            "command writes the new one.",
            LonasEdgeWarning,
            stacklevel=2,
        )
    replace_text(folder / CARD, card)


def store_evaluation(folder: Path, protocol: str, evaluation: Evaluation) -> None:
    """Keep an evaluation with an exported directory, in place of an earlier one by this protocol, and show it in the card."""
    evaluations = Evaluations.of(folder).with_evaluation(protocol, evaluation)
    try:
        with interrupts_deferred():
            write_card(folder, evaluations=evaluations)
            evaluations.write(folder / FILE)
    except OSError as error:
        raise LonasEdgeError(f"{folder}: cannot be written: {error}") from error
