"""Safe readers and writers: lazily read base checkpoints, plain tensor files, output directories that appear whole.

Nothing here executes what came with a model: safetensors holds no code, and `.bin` files (pickles) are opened with
`weights_only=True` only.
"""

import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.space.architecture import Architecture

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_LEGACY_BUFFERS = ("rotary_emb.inv_freq",)  # written by transformers < 4.32, recomputed since
_KEPT = "kept"  # the name of a replaced output inside the directory that sets it aside
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        LonasEdgeError: If it cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise LonasEdgeError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def load_pickle(path: Path, mmap: bool = False) -> dict[str, torch.Tensor]:
    """Load a `.bin` file of tensors without executing anything in it.

    Args:
        path: The file.
        mmap: Map the tensors instead of reading them.

    Returns:
        Tensors by name.

    Raises:
        LonasEdgeError: If the file holds anything but tensors, or cannot be read.
    """
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # files older than torch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise LonasEdgeError(
            f"{path}: refused: this pickle holds more than tensors, and loading it could execute code. "
            "Ask its author for safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not a readable PyTorch file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise LonasEdgeError(f"{path}: expected tensors by name")
    return content


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, with its faults told as the user's. Closed at once, so that its pages do not stay mapped."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise LonasEdgeError(f"{path}: damaged or truncated safetensors file ({error}). Download or copy it again.") from error


class TensorFiles:
    """Tensors in one or several files, read one at a time, and only the rows and columns asked for."""

    def __init__(self, files: Mapping[str, Path]):
        """Remember where each tensor lies.

        Args:
            files: For each tensor's name, the file that holds it.
        """
        self._files = dict(files)
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}

    @property
    def files(self) -> list[Path]:
        """The files, each once."""
        return list(dict.fromkeys(self._files.values()))

    def scan(self) -> list[str]:
        """Read the headers of all files.

        Returns:
            Faults: files that cannot be opened, tensors that are not where the index says.
        """
        faults = []
        for path in self.files:
            expected = [name for name, file in self._files.items() if file == path]
            try:
                found = self._header(path)
            except LonasEdgeError as error:
                faults.append(str(error))
                continue
            faults += [f"{path}: tensor {name} is missing" for name in expected if name not in found]
            for name in expected:
                if name in found:
                    self.shapes[name], self.dtypes[name] = found[name]
        return faults

    def _header(self, path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        if path.suffix != ".safetensors":
            self._pickles[path] = load_pickle(path, mmap=True)
            return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in self._pickles[path].items()}
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype())) for name, s in slices.items()}

    def read(self, name: str, rows: int | None = None, columns: int | None = None) -> torch.Tensor:
        """Read the first rows and columns of a tensor.

        Args:
            name: The tensor.
            rows: How many rows; all when None.
            columns: How many columns; all when None, or when the tensor has one dimension.

        Returns:
            The tensor [rows, columns] or [rows], as stored.

        Raises:
            LonasEdgeError: If its file cannot be read.
        """
        path = self._files[name]
        index = (slice(rows), slice(columns))[: len(self.shapes[name])]
        if path in self._pickles:
            return self._pickles[path][name][index]
        with _opened(path) as file:
            return file.get_slice(name)[index]


def _indexed_files(index: Path) -> dict[str, Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LonasEdgeError(f'{index}: no "weight_map"; expected the index of a sharded checkpoint')
    folder = index.parent.resolve()
    problems, files = [], {}
    for name in sorted(set(map(str, weight_map.values()))):
        path = folder / name
        if Path(os.path.normpath(path)).parent != folder:
            problems.append(f"{name}: lies outside the checkpoint's folder")
        elif not path.exists():
            problems.append(f"{name}: does not exist")
        files[name] = path
    raise_all(f"{index}: the index names files that cannot be used:", problems, "Download the checkpoint again.")
    return {tensor: files[str(name)] for tensor, name in weight_map.items()}


def open_tensors(folder: Path) -> TensorFiles:
    """Find the weights of a Hugging Face checkpoint: single or sharded, safetensors preferred over `.bin`.

    Args:
        folder: The checkpoint's directory.

    Returns:
        The tensors, headers read.

    Raises:
        LonasEdgeError: If there are no weights or the files are damaged; every fault is listed.
    """
    for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / index).exists():
            tensors = TensorFiles(_indexed_files(folder / index))
        elif (folder / single).exists():
            tensors = TensorFiles({})
            tensors._files = dict.fromkeys(tensors._header(folder / single), folder / single)
        else:
            continue
        raise_all(f"{folder}: the checkpoint's files do not hold what they should:", tensors.scan())
        return tensors
    raise LonasEdgeError(f"{folder}: no weights ({SAFETENSORS}, {SAFETENSORS_INDEX}, {PICKLE} or {PICKLE_INDEX})")


def open_base(folder: Path, architecture: Architecture) -> TensorFiles:
    """Open a base checkpoint and compare its tensors with what the configuration says.

    Args:
        folder: The checkpoint's directory.
        architecture: The model's shapes.

    Returns:
        The tensors.

    Raises:
        LonasEdgeError: If tensors are missing, unknown or of another shape; every mismatch is listed.
    """
    tensors = open_tensors(folder)
    expected = architecture.shapes
    head = f"{architecture.family.head}.weight"
    ignored = {head} if architecture.tied else set()
    problems = [f"{name}: missing; expected {list(shape)}" for name, shape in expected.items() if name not in tensors.shapes]
    for name, shape in tensors.shapes.items():
        if name in ignored or name.endswith(_LEGACY_BUFFERS):
            continue
        if name not in expected:
            problems.append(f"{name}: unknown to {architecture.model_type}; found {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"{name}: expected {list(expected[name])} from config.json, found {list(shape)}")
        elif tensors.dtypes[name] not in _DTYPES.values():
            problems.append(f"{name}: dtype {tensors.dtypes[name]}; expected a float type (quantized bases are not supported)")
    raise_all(f"{folder}: the base checkpoint does not match its config.json:", problems)
    return tensors


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class OutputDirectory:
    """A directory that appears whole or not at all: written beside its place, renamed last."""

    path: Path
    overwrite: bool = False

    def check(self, needed_bytes: int) -> None:
        """Refuse before the long part what could not be written after it. Clears what killed runs left.

        Args:
            needed_bytes: How much will be written.

        Raises:
            LonasEdgeError: If the output exists, its parent cannot be written, or the disk has no room.
        """
        _settle(self.path)
        if self.path.exists() and not self.overwrite:
            raise LonasEdgeError(f"{self.path}: exists and is kept as it is. Choose another --output, or give --overwrite.")
        parent = _existing_parent(self.path)
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            reason = "cannot be written to" if parent.is_dir() else "is not a directory"
            raise LonasEdgeError(f"{self.path}: {parent} {reason}. Choose another --output.")
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise LonasEdgeError(
                f"{self.path}: not enough room: {needed_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free. "
                "Free some, or choose an --output on another disk."
            )

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yield a temporary sibling to write into; it becomes the output when the block ends without an error.

        Yields:
            The temporary directory.

        Raises:
            LonasEdgeError: If it cannot be written.
        """
        made = [parent for parent in self.path.absolute().parents if not parent.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _settle(self.path)
            partial = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".incomplete", dir=self.path.parent))
        except OSError as error:
            raise LonasEdgeError(f"{self.path}: cannot be written: {error}") from error
        try:
            with locked(partial):
                yield partial
                self._publish(partial)
        except OSError as error:
            raise LonasEdgeError(f"{self.path}: writing failed, nothing was changed: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made if not self.path.exists() else ():
                with suppress(OSError):
                    parent.rmdir()

    def _publish(self, partial: Path) -> None:
        partial.chmod(0o777 & ~_umask())
        if not self.path.exists():
            partial.rename(self.path)
            return
        if not self.overwrite:
            raise LonasEdgeError(
                f"{self.path}: appeared while it was being made, and is kept as it is. Move it away, or --overwrite."
            )
        old = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".old", dir=self.path.parent))
        with locked(old):
            self.path.rename(old / _KEPT)
            try:
                partial.rename(self.path)
            except OSError:
                (old / _KEPT).rename(self.path)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a directory's lock, as long as its writer lives.

    Args:
        folder: The directory.

    Yields:
        Whether it is held: False where another process holds it, or the directory has gone.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _settle(path: Path) -> None:
    """Clear what killed runs left for this output; an output that one had set aside returns to its place."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.(incomplete|old)")
    with suppress(OSError):  # what cannot be cleared is in nobody's way
        for left in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]:
            with locked(left) as abandoned:
                if abandoned and (left / _KEPT).exists() and not path.exists():
                    (left / _KEPT).rename(path)
                if abandoned:
                    shutil.rmtree(left, ignore_errors=True)
