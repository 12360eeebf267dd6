"""Read and write checkpoints and plain tensor files, a tensor or a part of one at a time.

Nothing here executes what came with a model: safetensors holds no code, and `.bin` files (pickles) are opened with
`weights_only=True` only.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file

from lonas_edge.data.logit_score import HEADS, SCORE, LogitScore, read_logit_score
from lonas_edge.data.pooling import EMBEDS
from lonas_edge.errors import LonasEdgeError, out_of_memory, raise_all
from lonas_edge.families import Family, Ranges
from lonas_edge.files import read_by, read_json, replace_text
from lonas_edge.space.architecture import Architecture

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_SHARD_BYTES = 10**9
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names of usable dtypes


def load_pickle(path: Path, mmap: bool = False) -> dict[str, torch.Tensor]:
    """Load a `.bin` file of tensors without executing anything in it; `mmap` maps the tensors instead of reading them."""
    try:
        with read_by("PyTorch", path):
            mmap = mmap and zipfile.is_zipfile(path)  # files older than torch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except LonasEdgeError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise LonasEdgeError(
            f"{path}: refused: this pickle holds more than tensors, and loading it could execute code. "
            "Ask its author for safetensors."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise LonasEdgeError(f"{path}: expected tensors by name")
    return content


def describe_damage(tensor: torch.Tensor) -> str | None:
    """Describe values that a network cannot compute with: NaN, Inf, or squares beyond fp32 (values above 1.8e19); else None.

    Trained weights are below 1e4.
    """
    narrowed = tensor.float() if tensor.dtype == torch.float64 else tensor  # torch 2.13 refuses to narrow by itself
    if torch.linalg.vector_norm(narrowed, dtype=torch.float32).isfinite():
        return None
    return "holds values too large to compute with" if tensor.isfinite().all() else "holds NaN or Inf"


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, and close it at once afterwards, so that its pages do not stay mapped."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except Exception as error:  # its own type, OSError, ValueError, TypeError
        if out_of_memory(error):  # a file that cannot be mapped
            raise
        raise LonasEdgeError(f"{path}: damaged or truncated safetensors file ({error}). Download or copy it again.") from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a safetensors or `.bin` file, by name."""
    if path.suffix != ".safetensors":
        return load_pickle(path)
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def take(tensor: torch.Tensor, rows: Ranges | None = None, columns: Ranges | None = None) -> torch.Tensor:
    """Take ranges of rows and columns (all when None) of a tensor [out, in] or [out]: a view, or a copy of several ranges."""
    for axis, ranges in enumerate((rows, columns)):
        if ranges is not None and axis < tensor.dim():
            parts = [tensor.narrow(axis, start, stop - start) for start, stop in ranges]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
    return tensor


class TensorFiles:
    """Tensors in one or several files, read one at a time, and only the requested rows and columns."""

    def __init__(self, files: Mapping[str, Path]):
        """Remember the file of each tensor, and read the headers of all files."""
        self._files = dict(files)
        self._stored: dict[str, str] = {}  # names in the files, where they are others
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        self._computed: dict[str, torch.Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        headers = {path: self._header(path) for path in self.files}
        missing = [f"{path}: tensor {name} is missing" for name, path in self._files.items() if name not in headers[path]]
        raise_all("The checkpoint's files do not hold what its index says:", missing, "Download the checkpoint again.")
        for name, path in self._files.items():
            self.shapes[name], self.dtypes[name] = headers[path][name]

    @classmethod
    def of_file(cls, path: Path) -> "TensorFiles":
        """Open all tensors of one file."""
        tensors = cls({})
        header = tensors._header(path)
        tensors._files = dict.fromkeys(header, path)
        tensors.shapes = {name: shape for name, (shape, _) in header.items()}
        tensors.dtypes = {name: dtype for name, (_, dtype) in header.items()}
        return tensors

    @property
    def files(self) -> list[Path]:
        """The files, each once."""
        return list(dict.fromkeys(self._files.values()))

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name]

    def _header(self, path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and dtypes of a file's tensors, by name."""
        if path.suffix != ".safetensors":
            self._pickles[path] = load_pickle(path, mmap=True)
            return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in self._pickles[path].items()}
        with open_safetensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {name: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype())) for name, s in slices.items()}

    def read(self, name: str, rows: Ranges | None = None, columns: Ranges | None = None) -> torch.Tensor:
        """Read ranges of rows and columns of a tensor, as stored; all when None."""
        if name in self._computed:
            return take(self._computed[name], rows, columns)
        path, name_there = self._files[name], self._stored.get(name, name)
        if path in self._pickles:
            return take(self._pickles[path][name_there], rows, columns)
        shape = self.shapes[name]
        rows = rows or ((0, shape[0]),)
        across = (slice(columns[0][0], columns[-1][1]) if columns else slice(None),)[: len(shape) - 1]
        with open_safetensors(path) as file:
            stored = file.get_slice(name_there)
            parts = [stored[(slice(start, stop), *across)] for start, stop in rows]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if columns is None:
            return tensor
        first = columns[0][0]
        return take(tensor, None, tuple((start - first, stop - first) for start, stop in columns))

    def add_score(self, score: LogitScore) -> None:
        """Add the head [1, hidden] of a reranker that compares tokens, which is read in fp32; its dtype is the other head's."""
        head = next((name for name in HEADS if name in self._files), None)
        if head is None:
            raise LonasEdgeError(f"{self.files[0].parent}: {HEADS[0]} is missing; a reranker's score is made of it")
        rows = [self.read(head, ((token, token + 1),)).float() for token in (score.true, score.false) if token is not None]
        self._files[SCORE] = self._files[head]
        self._computed[SCORE] = rows[0] - rows[1] if len(rows) > 1 else rows[0]
        self.shapes[SCORE], self.dtypes[SCORE] = tuple(rows[0].shape), self.dtypes[head]

    def rename(self, family: Family) -> None:
        """Rename tensors that are stored with another prefix of the body, or under old names, as transformers does.

        BLOOM is published without its prefix (`h.0.mlp…`, not `transformer.h.0.mlp…`), BERT with `LayerNorm.gamma`.
        """
        embedding = f"{family.embedding.removeprefix(family.prefix)}.weight"
        prefix = next((other for other in family.other_prefixes if other + embedding in self._files), family.prefix)
        heads = tuple(f"{module}." for module in family.head_modules)

        def current(name: str) -> str:
            if name.startswith(prefix) and not name.startswith(heads):
                name = family.prefix + name.removeprefix(prefix)
            old = next((ending for ending in family.legacy_names if name.endswith(ending)), "")
            return name.removesuffix(old) + family.legacy_names[old] if old else name

        self._stored = {current(name): name for name in self._files}
        self._files = {name: self._files[there] for name, there in self._stored.items()}
        self.shapes = {name: self.shapes[there] for name, there in self._stored.items()}
        self.dtypes = {name: self.dtypes[there] for name, there in self._stored.items()}


def open_tensors(folder: Path) -> TensorFiles:
    """Open the weights of a Hugging Face checkpoint, with the head of a reranker that compares tokens; headers are read."""
    tensors = _open_files(folder)
    if score := read_logit_score(folder):
        tensors.add_score(score)
    return tensors


def _open_files(folder: Path) -> TensorFiles:
    """Open the files in transformers' order: safetensors, then `.bin`; a single file before shards, whose index may be old."""
    for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).exists():
            return TensorFiles.of_file(folder / single)
        if (folder / index).exists():
            return TensorFiles(_indexed_files(folder / index))
    exported = any(path.suffix in (".xml", ".gguf") for path in folder.iterdir())
    hint = "; an OpenVINO or GGUF model. Pass the model that it was made from" if exported else ""
    raise LonasEdgeError(f"{folder}: no weights ({SAFETENSORS}, {SAFETENSORS_INDEX}, {PICKLE} or {PICKLE_INDEX}){hint}")


def _indexed_files(index: Path) -> dict[str, Path]:
    """The file of each tensor of a sharded checkpoint; none may lie outside its directory."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LonasEdgeError(f'{index}: no "weight_map"; expected the index of a sharded checkpoint')
    folder = index.parent.resolve()
    errors, files = [], {}
    for name in sorted(set(map(str, weight_map.values()))):
        files[name] = folder / name
        if Path(os.path.normpath(files[name])).parent != folder:
            errors.append(f"{name}: lies outside the checkpoint's folder")
        elif not files[name].exists():
            errors.append(f"{name}: does not exist")
    raise_all(f"{index}: the index names files that cannot be used:", errors, "Download the checkpoint again.")
    return {tensor: files[str(name)] for tensor, name in weight_map.items()}


def open_base(folder: Path, architecture: Architecture, replaced: Collection[str] = ()) -> TensorFiles:
    """Open a base checkpoint and compare its tensors with its configuration.

    `replaced` tensors are not taken from it: if the task initializes a new head, the head may be missing or of another shape.
    """
    tensors = open_tensors(folder)
    family, expected = architecture.family, architecture.shapes
    tensors.rename(family)
    head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
    ignored = {head} if architecture.tied else set()
    new_head = set(replaced) & architecture.head.keys() if family.kind.new_head else set()
    missing = [name for name in expected if name not in tensors.shapes and name not in new_head]
    headless = [name for name in missing if family.kind.new_head and name in architecture.head]
    errors = []
    for name in missing:
        hint = f" (a body without the head of a {family.kind.name}; adapters of `lonas-edge train` carry one)"
        errors.append(f"{name}: missing; expected {list(expected[name])}{hint if name in headless else ''}")
    for name, shape in tensors.shapes.items():
        if name in ignored | new_head or name.endswith(family.legacy_buffers) or name.startswith(family.other_heads):
            continue
        if name not in expected:
            errors.append(f"{name}: unknown to {architecture.model_type}; found {list(shape)}")
        elif shape != expected[name]:
            errors.append(f"{name}: expected {list(expected[name])} from config.json, found {list(shape)}")
        elif tensors.dtypes[name] not in _DTYPES.values():
            floats = ", ".join(_DTYPES.values())
            errors.append(f"{name}: dtype {tensors.dtypes[name]}; expected {floats} (quantized bases are not supported)")
    stored_twice = not errors and head in ignored & tensors.shapes.keys()
    if stored_twice and not torch.equal(tensors.read(head), tensors.read(embedding)):
        reason = f"differs from {embedding}, but config.json ties them (tie_word_embeddings)"
        errors.append(f"{head} in {tensors.file_of(head).name}: {reason}")
    hint = EMBEDS if headless and not new_head else ""
    raise_all(f"{folder}: the base checkpoint does not match its config.json:", errors, hint)
    return tensors


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], torch.Tensor],
    done: Callable[[float], None] = lambda _: None,
) -> None:
    """Write `model.safetensors`, or shards of 1 GB with their index, with one shard in memory at a time.

    Args:
        folder: The directory, which exists.
        shapes: Shapes of the tensors, by name.
        dtypes: Their dtypes, by name.
        read: Returns a tensor of this shape and dtype.
        done: Called with the share that is written.
    """
    plan = split_torch_state_dict_into_shards(
        {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in shapes.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_SHARD_BYTES,
    )
    written = 0
    for file, names in plan.filename_to_tensors.items():
        save_file({name: read(name).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        written += len(names)
        done(written / len(shapes))
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        replace_text(folder / SAFETENSORS_INDEX, json.dumps(index, indent=2) + "\n")
