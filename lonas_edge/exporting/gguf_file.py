"""Write a sub-network as a GGUF file for llama.cpp, tensor by tensor, and read it again.

Layers of one shape are written as llama.cpp's architecture of the family. A LLaMA with unequal layers is written as `deci`,
which has heads and MLP width per layer. It supports removed blocks, with exceptions (`src/models/deci.cpp`):

- a layer without attention has no heads; the first layer has one head of zeros, since llama.cpp reads a head's channels there;
- a layer with attention and no MLP would be skipped (`n_ff == 0`): its MLP is 32 channels of zeros;
- a layer without both is not written.

Zeros add nothing to the residual, so the logits are the same. Key names are gguf-py's; the order of rotary rows is that of
`conversion/llama.py` in llama.cpp.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.manifest import Compression, shares
from lonas_edge.families import FAMILIES, LlamaCpp, head_dim
from lonas_edge.formats import GGUF_TYPES, GgufType
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import Source
from lonas_edge.space.complexity import materialized_shapes
from lonas_edge.space.subnetwork import Subnetwork

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ZERO_WIDTH = GGUF_TYPES["q8_0"].block  # channels of an MLP of zeros
# Rounding as a share of the largest element of a block (of the element itself in types without blocks), and near 0. Merged
# weights are rounded to fp32 first (2^-23 if the order of sums differs); q8_0 rounds to 1/127 of its fp16 scale.
_ROUNDING = {
    "f32": (2.0**-23, 2.0**-126),
    "f16": (2.0**-11, 2.0**-24),
    "bf16": (2.0**-8, 2.0**-126),
    "q8_0": (0.5 / 127 + 2.0**-11, 2.0**-18),
}
_SLACK = 1.01


def file_name(kind: str) -> str:
    """Return the name of the file, from which model hubs and `bench` read the type."""
    return f"model.{kind.upper()}.gguf"


@dataclass(frozen=True)
class Layer:
    """A decoder layer of the file: its index in the base, its heads and the channels of its MLP; 0 in removed blocks."""

    index: int
    heads: int
    key_value_heads: int
    width: int


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    Attributes:
        shape: Its shape in PyTorch's order.
        source: The tensor of the materialized model; None for constants that stand for a removed block.
        head_channels: Channels of a head whose rotary pairs become neighbours; 0 if rows stay in order.
        fill: Value of a constant.
    """

    name: str
    shape: tuple[int, ...]
    source: str | None = None
    head_channels: int = 0
    fill: float = 0.0

    def kind(self, matrices: GgufType) -> GgufType:
        """Return its type, given that of matrices; vectors are stored in f32."""
        return matrices.of(self.shape[-1]) if len(self.shape) > 1 else GGUF_TYPES["f32"]

    def from_model(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put rows in the file's order: halves of a head [2, d/2] become neighbours [d/2, 2]."""
        if not self.head_channels:
            return tensor
        pairs = tensor.reshape(-1, 2, self.head_channels // 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    def to_model(self, tensor: torch.Tensor) -> torch.Tensor:
        """Put rows back in the model's order."""
        if not self.head_channels:
            return tensor
        pairs = tensor.reshape(-1, self.head_channels // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)


class Layout:
    """The layers and tensors of a sub-network in a GGUF file, from configurations alone."""

    def __init__(self, source: Source, subnetwork: Subnetwork):
        """Lay out a sub-network; fail with every reason if llama.cpp has no architecture for it."""
        self.source, self._family = source, source.architecture.family
        self._known = _llama_cpp(source)
        self._shapes = materialized_shapes(subnetwork, source.unties)
        fields = subnetwork.layer_fields()
        layers = [Layer(index, *self._family.llama_cpp_layer(own)) for index, own in enumerate(fields)]
        self.layers = tuple(layer for layer in layers if layer.heads or layer.width)
        self.equal = len({(layer.heads, layer.key_value_heads, layer.width) for layer in self.layers}) == 1 and all(
            layer.heads and layer.width for layer in self.layers
        )
        faults = self._family.llama_cpp_faults(source.architecture.config)
        if not self.layers:
            faults.append("every block is removed")
        if not self.equal and self._known.unequal is None:
            faults.append(f"layers have unequal widths; llama.cpp's {self._known.equal!r} has one width for all")
        raise_all(f"{source.base.folder}: cannot be written as GGUF:", faults, "Use --stage ir or --stage checkpoint.")

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self._known.equal if self.equal or self._known.unequal is None else self._known.unequal

    def written(self, layer: Layer) -> Layer:
        """Return a layer with the zeros that stand for a removed block."""
        heads = (layer.heads, layer.key_value_heads) if layer.heads or layer is not self.layers[0] else (1, 1)
        return Layer(layer.index, *heads, layer.width or _ZERO_WIDTH)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The tensors of the file, in their order."""
        architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(architecture, len(self.layers))
        renamed_layers = {self._family.layer(layer.index): self._family.layer(new) for new, layer in enumerate(self.layers)}
        channels = head_dim(self.source.architecture.config)
        entries = []
        for name, shape in self._shapes.items():
            layer, relative = self.source.architecture.split(name)
            renamed = f"{renamed_layers[layer]}.{relative}" if layer else name
            paired = relative.rpartition(".")[0] in self._known.paired
            to = names.get_name(renamed, try_suffixes=(".weight", ".bias"))
            if to is None:
                raise LonasEdgeError(f"{self.source.base.folder}: {name}: llama.cpp's {self.architecture!r} has no such tensor")
            entries.append(Entry(to, shape, name, channels if paired else 0))
        return (*entries, *self._fillers(channels))

    def _fillers(self, channels: int) -> Iterator[Entry]:
        """Yield tensors that stand for removed blocks: zeros, and norms of ones, which have no effect then."""
        hidden = self.source.architecture.config.hidden_size
        for new, layer in enumerate(self.layers):
            written = self.written(layer)
            tensors = self._known.attention_tensors(channels, hidden) if written.heads > layer.heads else {}
            tensors |= self._known.mlp_tensors(_ZERO_WIDTH, hidden) if written.width > layer.width else {}
            for name, shape in tensors.items():
                yield Entry(f"blk.{new}.{name}.weight", shape, fill=float(len(shape) == 1))

    def bytes(self, kind: str) -> int:
        """Return the bytes of the tensors with matrices of this type."""
        matrices = GGUF_TYPES[kind]
        return sum(_bytes(entry, matrices) for entry in self.entries)

    def compression(self, kind: str) -> tuple[Compression, ...]:
        """Return the storage of the layers' weights, the largest share first."""
        counts: Counter[tuple[str, int | None]] = Counter()
        for entry in self.entries:
            if entry.source and len(entry.shape) > 1 and self.source.architecture.split(entry.source)[0]:
                stored = entry.kind(GGUF_TYPES[kind])
                counts[stored.name, stored.block if stored.block > 1 else None] += math.prod(entry.shape)
        return shares(counts)


def _llama_cpp(source: Source) -> LlamaCpp:
    model_type = source.architecture.model_type
    known = source.architecture.family.llama_cpp.get(model_type)
    if known is None:
        written = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.llama_cpp))
        raise LonasEdgeError(
            f"{source.base.folder}: --stage gguf does not support model_type {model_type!r}, only {written}. "
            "Use --stage ir or --stage checkpoint."
        )
    return known


def _bytes(entry: Entry, matrices: GgufType) -> int:
    rows = entry.shape[0] if len(entry.shape) > 1 else 1
    return entry.kind(matrices).matrix_bytes(rows, entry.shape[-1])


def _ggml(kind: GgufType) -> GGMLQuantizationType:
    return GGMLQuantizationType[kind.name.upper()]


def write_gguf(
    layout: Layout,
    model: MaterializedModel,
    vocabulary: Mapping[str, Any],
    path: Path,
    kind: str,
    done: Callable[[float], None] = lambda _: None,
) -> None:
    """Write a sub-network as GGUF, one tensor in memory at a time.

    `vocabulary` is a result of `vocabulary_of`, `kind` the type of the matrices, one of `GGUF_TYPES`.
    """
    matrices = GGUF_TYPES[kind]
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_name(f"{model.source.base.name} {model.subnetwork.name}")
    _add_shape(writer, layout)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, value in vocabulary.items():
        getattr(writer, f"add_{name}")(value)
    factors = _rope_factors(model.source.architecture.config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for entry in layout.entries:
        raw = _ggml(entry.kind(matrices))
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), _bytes(entry, matrices), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    overflowed = []
    for index, entry in enumerate(layout.entries, start=1):
        stored = entry.kind(matrices)
        value = entry.from_model(model.tensor(entry.source)) if entry.source else torch.full(entry.shape, entry.fill)
        if stored.name == "f16" and float(value.abs().max()) > np.finfo(np.float16).max:
            overflowed.append(f"{entry.source}: overflows f16")
        writer.write_tensor_data(gguf.quants.quantize(value.numpy(), _ggml(stored)))
        done(index / len(layout.entries))
    writer.close()
    model.refuse_not_finite()
    raise_all("The weights do not fit the type:", overflowed, "Choose --gguf-type f32 or bf16.")


def _add_shape(writer: gguf.GGUFWriter, layout: Layout) -> None:
    """Add the fields that describe the network; lists if layers are unequal."""
    architecture, layers = layout.source.architecture, [layout.written(layer) for layer in layout.layers]

    def of(name: str) -> Any:
        values = [getattr(layer, name) for layer in layers]
        return values[0] if layout.equal else values

    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(of("width"))
    writer.add_head_count(of("heads"))
    writer.add_head_count_kv(of("key_value_heads"))
    for name, value in architecture.family.llama_cpp_fields(architecture.config).items():
        getattr(writer, f"add_{name}")(value)


def _rope_factors(config: Any) -> np.ndarray | None:
    """Return llama.cpp's divisors of scaled rotary frequencies, as LLaMA 3's are, [channels / 2]; None if not scaled."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return None
    channels = head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    factors: np.ndarray = (plain / scaled).float().numpy()
    return factors


class GgufFile:
    """A written GGUF file, read again."""

    def __init__(self, path: Path, layout: Layout, kind: str):
        """Open it and compare its tensors with the expected layout; weights stay on the disk."""
        self._stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name != "rope_freqs.weight"}
        self._entries = {entry.source: entry for entry in layout.entries if entry.source}
        self._matrices = GGUF_TYPES[kind]
        expected = {entry.name: _ggml(entry.kind(self._matrices)) for entry in layout.entries}
        actual = {name: tensor.tensor_type for name, tensor in self._stored.items()}
        wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
        wrong += [
            entry.name
            for entry in layout.entries
            if entry.source is None and entry.name not in wrong and not (self._values(entry) == entry.fill).all()
        ]
        raise_all(f"{path}: verification failed: unexpected tensors:", wrong, "Please report it.")

    def _values(self, entry: Entry) -> torch.Tensor:
        tensor = self._stored[entry.name]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(entry.shape))

    def restored(self, name: str, exact: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Decompress a tensor of the materialized model and compare it with its value there, not rounded.

        Returns:
            The stored tensor in fp32, in the model's order of rows, and its largest difference in units of the difference that
            rounding to its type explains.
        """
        entry = self._entries[name]
        restored = entry.to_model(self._values(entry))
        kind = entry.kind(self._matrices)
        share, least = _ROUNDING[kind.name]
        blocks = exact.float().reshape(-1, kind.block)
        allowed = blocks.abs().amax(-1, keepdim=True) * share * _SLACK + least
        difference = (restored.reshape(blocks.shape) - blocks).abs()
        error = torch.where(difference == 0, 0.0, difference / allowed)  # NaN stays NaN
        return restored, float(error.max())
