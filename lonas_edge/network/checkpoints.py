"""Safe readers: base checkpoints and plain tensor files, lazily read.

Nothing here executes what came with a model: safetensors holds no code, and `.bin` files (pickles) are opened with
`weights_only=True` only.
"""

import os
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import torch
from safetensors import safe_open

from lonas_edge.data.pooling import EMBEDS
from lonas_edge.errors import LonasEdgeError, out_of_memory, raise_all
from lonas_edge.families import Family, Part
from lonas_edge.files import check_model_folder, exists, read_json, regular
from lonas_edge.network.parts import shifted, take
from lonas_edge.space.architecture import Architecture

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names
FLOATS = tuple(_DTYPES.values())  # the dtypes that weights may have


def load_pickle(path: Path, mmap: bool = False) -> dict[str, torch.Tensor]:
    """Load a `.bin` file of tensors without executing anything in it; `mmap` maps the tensors instead of reading them."""
    regular(path, "the weights")
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # files older than torch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise LonasEdgeError(
            f"{path}: refused: this pickle holds more than tensors, and loading it could execute code. "
            "Ask its author for safetensors."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files end in a dozen types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LonasEdgeError(f"{path}: not a readable PyTorch file: {reason}") from error
    if not isinstance(content, dict):
        raise LonasEdgeError(f"{path}: expected tensors by name, found {type(content).__name__}")
    raise_all(f"{path}: expected tensors by name:", [fault for item in content.items() for fault in _pickled_faults(*item)])
    return dict(content)


def _pickled_faults(name: Any, value: Any) -> list[str]:
    if not isinstance(name, str):
        return [f"{shortened(name)}: expected a text as name"]
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return [f"{name}: {type(value).__name__}; expected a tensor"]
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        return [f"{name}: a {kind} tensor on {value.device}; expected a plain one with its values"]
    return []


def number_fault(tensor: torch.Tensor) -> str | None:
    """Describe values that a network cannot compute with: NaN, Inf, or squares beyond fp32 (values above 1.8e19); else None.

    Trained weights are below 1e4.
    """
    narrowed = tensor.float() if tensor.dtype == torch.float64 else tensor  # torch 2.13 refuses to narrow by itself
    if torch.linalg.vector_norm(narrowed, dtype=torch.float32).isfinite():
        return None
    return "holds values too large to compute with" if tensor.isfinite().all() else "holds NaN or Inf"


@contextmanager
def read_damaged(path: Path) -> Iterator[None]:
    """Raise a LonasEdgeError for any error of reading a safetensors file inside the block."""
    regular(path, "the weights")
    try:
        yield
    except Exception as error:  # its own type, OSError, ValueError, TypeError
        if out_of_memory(error):  # a file that cannot be mapped
            raise
        raise LonasEdgeError(f"{path}: damaged or truncated safetensors file ({error}). Download or copy it again.") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, and close it at once afterwards, so that its pages do not stay mapped."""
    with read_damaged(path), safe_open(path, framework="pt") as file:
        yield file


class TensorFiles:
    """Tensors in one or several files, read one at a time, and only the requested rows and columns."""

    def __init__(self, files: Mapping[str, Path]):
        """Remember the file of each tensor."""
        self._files = dict(files)
        self._stored: dict[str, str] = {}  # names in the files, where they are others
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}

    @property
    def files(self) -> list[Path]:
        """The files, each once."""
        return list(dict.fromkeys(self._files.values()))

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name]

    def scan(self) -> list[str]:
        """Read the headers of all files; return a line for each file that cannot be opened and each missing tensor."""
        faults = []
        for path in self.files:
            expected = [name for name, file in self._files.items() if file == path]
            try:
                header = self._header(path)
            except LonasEdgeError as error:
                faults.append(str(error))
                continue
            faults += [f"{path}: tensor {name} is missing" for name in expected if name not in header]
            for name in expected:
                if name in header:
                    self.shapes[name], self.dtypes[name] = header[name]
        return faults

    def _header(self, path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        if path.suffix != ".safetensors":
            self._pickles[path] = load_pickle(path, mmap=True)
            return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in self._pickles[path].items()}
        with _opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype())) for name, s in slices.items()}

    def read(self, name: str, rows: Part | None = None, columns: Part | None = None) -> torch.Tensor:
        """Read ranges of rows and columns of a tensor, as stored; all when None."""
        path, name_there = self._files[name], self._stored.get(name, name)
        if path in self._pickles:
            return take(self._pickles[path][name_there], rows, columns)
        shape = self.shapes[name]
        rows = rows or ((0, shape[0]),)
        inner = (slice(columns[0][0], columns[-1][1]) if columns else slice(None),)[: len(shape) - 1]
        with _opened(path) as file:
            stored = file.get_slice(name_there)
            parts = [stored[(slice(start, stop), *inner)] for start, stop in rows]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return take(tensor, None, shifted(columns)) if columns else tensor

    def name_as(self, family: Family) -> None:
        """Rename tensors that are stored with another prefix of the body, or under old names, as transformers does.

        BLOOM is published without its prefix (`h.0.mlp…`, not `transformer.h.0.mlp…`), BERT with `LayerNorm.gamma`.
        """
        embedding = f"{family.embedding.removeprefix(family.prefix)}.weight"
        prefix = next((other for other in family.other_prefixes if other + embedding in self._files), family.prefix)
        heads = tuple(f"{module}." for module in family.head_modules)

        def named(name: str) -> str:
            if name.startswith(prefix) and not name.startswith(heads):
                name = family.prefix + name.removeprefix(prefix)
            old = next((ending for ending in family.legacy_names if name.endswith(ending)), "")
            return name.removesuffix(old) + family.legacy_names[old] if old else name

        self._stored = {named(name): name for name in self._files}
        self._files = {name: self._files[there] for name, there in self._stored.items()}
        self.shapes = {name: self.shapes[there] for name, there in self._stored.items()}
        self.dtypes = {name: self.dtypes[there] for name, there in self._stored.items()}


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in one file by stored name; values are not read."""
    return {name: shape for name, (shape, _dtype) in TensorFiles({})._header(path).items()}


def _indexed_files(index: Path) -> dict[str, Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LonasEdgeError(f'{index}: no "weight_map"; expected the index of a sharded checkpoint')
    folder = index.parent.resolve()
    problems, files = [], {}
    for name in sorted(set(map(str, weight_map.values()))):
        path = folder / name
        if "\0" in name or Path(os.path.normpath(path)).parent != folder:
            problems.append(f"{name}: lies outside the checkpoint's folder")
        elif not exists(path):
            problems.append(f"{name}: does not exist")
        files[name] = path
    raise_all(f"{index}: the index names files that cannot be used:", problems, "Download the checkpoint again.")
    return {tensor: files[str(name)] for tensor, name in weight_map.items()}


def open_tensors(folder: Path) -> TensorFiles:
    """Open the weights of a Hugging Face checkpoint; headers are read.

    As in transformers, safetensors come before `.bin` files, and a single file before shards: their index may be an old one.
    """
    check_model_folder(folder)
    for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).exists():
            tensors = TensorFiles({})
            tensors._files = dict.fromkeys(tensors._header(folder / single), folder / single)
        elif (folder / index).exists():
            tensors = TensorFiles(_indexed_files(folder / index))
        else:
            continue
        raise_all(f"{folder}: the checkpoint's files do not hold what they should:", tensors.scan())
        return tensors
    exported = any(path.suffix in (".xml", ".gguf") for path in folder.iterdir())
    hint = "; an OpenVINO or GGUF model. Pass the model that it was made from" if exported else ""
    raise LonasEdgeError(f"{folder}: no weights ({SAFETENSORS}, {SAFETENSORS_INDEX}, {PICKLE} or {PICKLE_INDEX}){hint}")


def _headless(name: str, architecture: Architecture) -> str:
    task = architecture.family.kind
    hint = f" (a body without the head of a {task.name}; adapters of `lonas-edge train` carry one)"
    return hint if task.new_head and name in architecture.head else ""


def open_base(folder: Path, architecture: Architecture, replaced: Collection[str] = ()) -> TensorFiles:
    """Open a base checkpoint and compare its tensors with its configuration.

    `replaced` tensors are not taken from it: if the task initializes a new head, the head may be missing or of another shape.
    """
    tensors = open_tensors(folder)
    tensors.name_as(architecture.family)
    expected = architecture.shapes
    family = architecture.family
    head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
    ignored = {head} if architecture.tied else set()
    new_head = set(replaced) & architecture.head.keys() if family.kind.new_head else set()
    problems = [
        f"{name}: missing; expected {list(shape)}{_headless(name, architecture)}"
        for name, shape in expected.items()
        if name not in tensors.shapes and name not in new_head
    ]
    for name, shape in tensors.shapes.items():
        if name in ignored | new_head or name.endswith(family.legacy_buffers) or name.startswith(family.other_heads):
            continue
        if name not in expected:
            problems.append(f"{name}: unknown to {architecture.model_type}; found {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"{name}: expected {list(expected[name])} from config.json, found {list(shape)}")
        elif tensors.dtypes[name] not in FLOATS:
            floats = ", ".join(FLOATS)
            problems.append(f"{name}: dtype {tensors.dtypes[name]}; expected {floats} (quantized bases are not supported)")
    if (
        not problems
        and head in ignored & tensors.shapes.keys()
        and not torch.equal(tensors.read(head), tensors.read(embedding))
    ):
        reason = f"differs from {embedding}, but config.json ties them (tie_word_embeddings)"
        problems.append(f"{head} in {tensors.file_of(head).name}: {reason}")
    headless = not new_head and any(name in architecture.head and name not in tensors.shapes for name in expected)
    hint = EMBEDS if headless and family.kind.new_head else ""
    raise_all(f"{folder}: the base checkpoint does not match its config.json:", problems, hint)
    return tensors
