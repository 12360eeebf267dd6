"""An exported directory, opened: what a command that runs an IR needs to know, and whether the files are whole."""

import filecmp
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import Field
from typing_extensions import TypedDict

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.evaluations import FILE, Evaluation, Evaluations
from lonas_edge.exporting.manifest import MANIFEST, Manifest, Written, record_rewritten
from lonas_edge.exporting.model_card import model_card
from lonas_edge.families import CAUSAL_LM, Task, family_of
from lonas_edge.files import check_model_folder, exists, read_json, read_text, replace_text
from lonas_edge.ir import MODEL, RUNTIME, WEIGHTS, runtime
from lonas_edge.ir.runtime import RuntimeProperties
from lonas_edge.processes import interrupts_deferred
from lonas_edge.schema import field_faults

_LATER = (RUNTIME, MODEL, FILE, "README.md", MANIFEST)  # what later commands write, in the order that they are replaced
_CHANGING, _UNTUNED = ".changing", ".untuned"
_TOKENIZER = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_XML_LIMIT = 2**28  # bytes; a 7B model's has 5 MB


class _ConfigFields(TypedDict, total=False):
    vocab_size: Required[Annotated[int, Field(ge=1)]]
    max_position_embeddings: Annotated[int, Field(ge=1)] | None


@dataclass(frozen=True)
class Exported:
    """A directory that OpenVINO clients run.

    Attributes:
        folder: The directory.
        manifest: Content of `lonas_edge.json`; None for a directory that another tool wrote.
        config: Content of `config.json`.
        properties: Run-time properties that `bench --tune` chose for it, those in the IR included.
    """

    folder: Path
    manifest: Manifest | None
    config: Mapping[str, Any]
    properties: Mapping[str, str]

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return int(self.config["vocab_size"])

    @property
    def context(self) -> int | None:
        """The longest sequence in tokens, where the configuration says it."""
        return self.config.get("max_position_embeddings")

    @property
    def task(self) -> Task:
        """What its model is for; a language model's where the family is not one of ours."""
        family = family_of(self.config.get("model_type"))
        return family.task if family else CAUSAL_LM

    @property
    def own_manifest(self) -> Manifest:
        """Its manifest; an error where another tool wrote the directory."""
        if self.manifest is None:
            raise _not_ours(self.folder)
        return self.manifest

    @property
    def weight_format(self) -> str:
        """How its weights are stored."""
        if self.manifest:
            return self.manifest.weight_format
        stored = read_json(self.folder / "openvino_config.json") if (self.folder / "openvino_config.json").exists() else {}
        return str(stored.get("dtype") or "as stored")


def open_exported(folder: Path, ours: bool = True, task: Task | None = None) -> Exported:
    """Open an exported directory and check that its files are whole, and ours those that were exported.

    Args:
        folder: The directory.
        ours: Whether it must be one that `lonas-edge export` wrote; otherwise any IR of a model will do.
        task: What its model must be for; anything when None.

    Returns:
        The directory.

    Raises:
        LonasEdgeError: If it is none, or files are missing or damaged; every fault is listed.
    """
    if not exists(folder) or not folder.is_dir():
        raise LonasEdgeError(f"{folder}: no such directory; expected one that `lonas-edge export` wrote")
    check_model_folder(folder)
    if ours and not (folder / MANIFEST).exists():
        raise _not_ours(folder)
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    if manifest and manifest.stage != "ir":
        raise LonasEdgeError(
            f"{folder}: a {manifest.stage} export; an IR is needed. Export again without --stage {manifest.stage}."
        )
    problems = [f"{name}: missing" for name in (MODEL, WEIGHTS, "config.json", *_TOKENIZER) if not (folder / name).exists()]
    problems += [] if problems else _ir_faults(folder, manifest is not None)
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    problems += [f"config.json: {fault}" for fault in field_faults(_ConfigFields, config)]
    problems += file_faults(folder, manifest) if manifest and not problems else []
    raise_all(f"{folder}: the exported directory is damaged:", problems, "Export it again.")
    chosen = _properties(folder)
    found = Exported(folder, manifest, config, chosen.properties if chosen else {})
    if task and found.task != task:
        raise LonasEdgeError(f"{folder}: a {found.task.name}; expected a {task.name}")
    return found


def _not_ours(folder: Path) -> LonasEdgeError:
    return LonasEdgeError(f"{folder}: no {MANIFEST}; expected a directory that `lonas-edge export` wrote")


def _properties(folder: Path) -> RuntimeProperties | None:
    return RuntimeProperties.read(folder / RUNTIME) if (folder / RUNTIME).exists() else None


def _ir_faults(folder: Path, ours: bool) -> list[str]:
    """Whether the .xml is whole and, if we wrote it, asks for nothing else than we do, and the .bin is as long as it says.

    An .xml may be large: it is parsed only where it has run-time options.
    """
    text = read_text(folder / MODEL, "the IR", _XML_LIMIT)
    if not text.rstrip().endswith("</net>"):
        return [f"{MODEL}: cut off"]
    ends = [int(offset) + int(size) for offset, size in re.findall(r'offset="(\d{1,18})"[^>]*?\bsize="(\d{1,18})"', text)]
    found = (folder / WEIGHTS).stat().st_size
    if ends and found < max(ends):
        return [f"{WEIGHTS}: expected at least {max(ends):,} bytes, found {found:,}"]
    return [f"{MODEL}: {fault}" for fault in runtime.ir_faults(text)] if ours else []


def file_faults(folder: Path, manifest: Manifest) -> list[str]:
    """Files of an exported directory that are not what was exported.

    Args:
        folder: The directory.
        manifest: Its manifest.

    Returns:
        One line a file; none where the manifest is of a version that kept no hashes.
    """
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    faults = []
    for name, either in (manifest.files or {}).items():
        sizes = {written.bytes for written in either}
        if name not in there:
            faults.append(f"{name}: missing")
        elif there[name].stat().st_size not in sizes:
            told = " or ".join(f"{size:,}" for size in sorted(sizes))
            faults.append(f"{name}: not what was exported: {MANIFEST} says {told} bytes, found {there[name].stat().st_size:,}")
        elif _written(there[name], there[name].stat().st_mtime_ns) not in either:
            faults.append(f"{name}: not what was exported: its SHA-256 is not the one in {MANIFEST}, {either[0].sha256[:12]}…")
    return faults


@lru_cache(maxsize=1024)
def _written(path: Path, _changed_ns: int) -> Written:
    """A command opens a directory more than once, and 5.7 GB take 4 seconds."""
    return Written.of(path)


def write_card(folder: Path) -> None:
    """Write the model card of an exported directory anew, from what is in it.

    Args:
        folder: The directory.
    """
    manifest, evaluations = Manifest.read(folder / MANIFEST), Evaluations.of(folder)
    replace_text(folder / "README.md", model_card(manifest, _properties(folder), evaluations))


def store_evaluation(folder: Path, protocol: str, evaluation: Evaluation) -> None:
    """Keep an evaluation with an exported directory, and show it in its model card. One for each protocol is kept.

    Args:
        folder: The directory, one that `lonas-edge export` wrote.
        protocol: Name of the protocol.
        evaluation: What was found.
    """
    with changed(folder) as new:
        Evaluations.of(new).with_one(protocol, evaluation).write(new / FILE)
        write_card(new)


def store_properties(folder: Path, chosen: RuntimeProperties) -> None:
    """Keep run-time properties with an exported directory instead of earlier ones, and show them in its model card.

    Args:
        folder: The directory.
        chosen: The properties.
    """
    with changed(folder) as new:
        runtime.restore(new)
        runtime.store(new, chosen)
        write_card(new)


def restore_properties(folder: Path) -> None:
    """Take back what `store_properties` did.

    Args:
        folder: The directory.
    """
    with changed(folder) as new:
        runtime.restore(new)
        write_card(new)


@contextmanager
def changed(folder: Path) -> Iterator[Path]:
    """Change the small files of an exported directory together: what fails, fails before one of them is another.

    Args:
        folder: The directory.

    Yields:
        A directory with copies of the files that later commands write; they are moved to their places when the block ends.

    Raises:
        LonasEdgeError: If the directory cannot be written to; it is as it was.
    """
    try:
        with _beside(folder, _CHANGING) as new:
            for path in filter(Path.exists, (folder / name for name in _LATER)):
                shutil.copyfile(path, new / path.name)
            yield new
            _move(new, folder)
    except OSError as error:
        raise LonasEdgeError(f"{folder}: cannot be changed, and is as it was: {error}") from error


def _move(new: Path, folder: Path) -> None:
    """Each of the files may be the last: `restore` finds the way back, and the manifest knows both IRs."""
    with interrupts_deferred():
        found = [new / name for name in _LATER if name != MANIFEST and (new / name).exists()]
        if new / MODEL in found and not filecmp.cmp(new / MODEL, folder / MODEL, shallow=False):
            record_rewritten(folder, MODEL, new / MODEL)
        for path in found:
            place = folder / path.name
            if not place.exists() or not filecmp.cmp(path, place, shallow=False):
                path.replace(place)
        if new / RUNTIME not in found:
            (folder / RUNTIME).unlink(missing_ok=True)


@contextmanager
def untuned(exported: Exported) -> Iterator[Exported]:
    """An exported directory as it was before `bench --tune`: itself, or one for the time being that shares its weights.

    Args:
        exported: The directory.

    Yields:
        The same without run-time properties of its own.

    Raises:
        LonasEdgeError: If the directory cannot be written to.
    """
    folder = exported.folder
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(_beside(folder, _UNTUNED))
            if exists(folder / RUNTIME):
                for path in [path for path in folder.rglob("*") if path.is_file() and copy not in path.parents]:
                    _link(path, copy / path.relative_to(folder))
                runtime.restore(copy, lambda new: record_rewritten(copy, MODEL, new))
                exported = open_exported(copy)
        except OSError as error:
            raise LonasEdgeError(f"{folder}: cannot be written to: {error}") from error
        yield exported


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system that has no links
        shutil.copyfile(path, link)


@contextmanager
def _beside(folder: Path, name: str) -> Iterator[Path]:
    """A directory inside an exported one, on the same disk; what a killed run left of it is cleared first."""
    new = folder / name
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)
