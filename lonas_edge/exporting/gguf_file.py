"""A sub-network as a GGUF file, which llama.cpp runs: its layout, the file written tensor by tensor, and read again.

Layers of one shape are written as llama.cpp's own architecture of the family. Unequal ones, of a LLaMA, are written as `deci`,
which has heads and MLP width for each layer, and can leave blocks out, but not everywhere (`src/models/deci.cpp`):

- a layer without attention has no heads, but for the first, from which the channels of a head are told: one head of zeros;
- a layer with attention and no MLP would be passed by whole (`n_ff == 0`): its MLP is 32 channels of zeros;
- a layer without both is not written.

Zeros add nothing to the residual: the answers are the same. Key names are gguf-py's; the order of rotary rows is that of
`conversion/llama.py` in llama.cpp.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.exporting.gguf_vocabulary import Vocabulary, tried_texts
from lonas_edge.exporting.manifest import Compression
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
# Rounding of an element as a share of the largest of its block, of itself where it is alone, and of what is next to 0. Merged
# weights are rounded to fp32 first (2^-23 where sums go another way); q8_0 rounds to 1/127 of its scale, and that to fp16.
_ROUNDING = {
    "f32": (2.0**-23, 2.0**-126),
    "f16": (2.0**-11, 2.0**-24),
    "bf16": (2.0**-8, 2.0**-126),
    "q8_0": (0.5 / 127 + 2.0**-11, 2.0**-18),
}
_SLACK = 1.01


def file_name(kind: str) -> str:
    """What the file of an export is called; model hubs and `bench` read the type from it."""
    return f"model.{kind.upper()}.gguf"


@dataclass(frozen=True)
class Layer:
    """A decoder layer of the file.

    Attributes:
        index: Which one of the base it is.
        heads: Heads of queries; 0 where attention is left out.
        key_value_heads: Heads of keys and values; 0 as well.
        width: Channels of the MLP; 0 where it is left out.
    """

    index: int
    heads: int
    key_value_heads: int
    width: int


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    Attributes:
        name: Its name there.
        shape: Its shape, as PyTorch counts.
        source: The tensor of the materialized model; None where it is one of zeros or ones that stands for what is left out.
        head_channels: Channels of a head whose rotary pairs are put side by side; 0 where rows stay in order.
        fill: What fills it where there is no source.
    """

    name: str
    shape: tuple[int, ...]
    source: str | None = None
    head_channels: int = 0
    fill: float = 0.0

    def kind(self, matrices: GgufType) -> GgufType:
        """How it is stored, given the type of matrices: vectors are stored in f32."""
        return matrices.of(self.shape[-1]) if len(self.shape) > 1 else GGUF_TYPES["f32"]

    def from_model(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in the file's order of rows: halves of a head [2, d/2] become neighbours [d/2, 2]."""
        if not self.head_channels:
            return tensor
        pairs = tensor.reshape(-1, 2, self.head_channels // 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    def to_model(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in the model's order of rows again."""
        if not self.head_channels:
            return tensor
        pairs = tensor.reshape(-1, self.head_channels // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)


class Layout:
    """What a sub-network is in a GGUF file, told from configurations alone."""

    def __init__(self, source: Source, subnetwork: Subnetwork):
        """Lay out a sub-network.

        Args:
            source: Base model and search space.
            subnetwork: The sub-network.

        Raises:
            LonasEdgeError: If llama.cpp has no architecture that computes it; every reason is listed.
        """
        self.source, self._family = source, source.architecture.family
        self._known = _llama_cpp(source)
        self._shapes = materialized_shapes(subnetwork, source.unties)
        fields = subnetwork.layer_fields()
        found = [
            Layer(i, f.get("num_attention_heads", 0), f.get("num_key_value_heads", 0), f.get("intermediate_size", 0))
            for i, f in enumerate(fields)
        ]
        self.layers = tuple(layer for layer in found if layer.heads or layer.width)
        self.equal = len({(layer.heads, layer.key_value_heads, layer.width) for layer in self.layers}) == 1 and all(
            layer.heads and layer.width for layer in self.layers
        )
        faults = self._family.llama_cpp_faults(source.architecture.config)
        if not self.layers:
            faults.append("every block is left out")
        if not self.equal and self._known.unequal is None:
            faults.append(f"layers are unequal, and llama.cpp's {self._known.equal!r} has one shape for all")
        raise_all(f"{source.base.folder}: cannot be written as GGUF:", faults, "--stage ir and --stage checkpoint take it.")

    @property
    def architecture(self) -> str:
        """What llama.cpp calls it."""
        return self._known.equal if self.equal or self._known.unequal is None else self._known.unequal

    def written(self, layer: Layer) -> Layer:
        """A layer as the file has it: with what of zeros stands for a block that is left out."""
        heads = (layer.heads, layer.key_value_heads) if layer.heads or layer is not self.layers[0] else (1, 1)
        return Layer(layer.index, *heads, layer.width or _ZERO_WIDTH)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The tensors of the file, in their order."""
        architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(architecture, len(self.layers))
        places = {self._family.layer(layer.index): self._family.layer(new) for new, layer in enumerate(self.layers)}
        channels = head_dim(self.source.architecture.config)
        entries = []
        for name, shape in self._shapes.items():
            layer, relative = self.source.architecture.split(name)
            renamed = f"{places[layer]}.{relative}" if layer else name
            paired = relative.rpartition(".")[0] in self._known.paired
            to = names.get_name(renamed, try_suffixes=(".weight", ".bias"))
            if to is None:
                raise LonasEdgeError(f"{self.source.base.folder}: {name}: llama.cpp's {self.architecture!r} has no such tensor")
            entries.append(Entry(to, shape, name, channels if paired else 0))
        return (*entries, *self._fillers(channels))

    def _fillers(self, channels: int) -> Iterator[Entry]:
        """What stands for blocks that are left out: it adds 0 to the residual. A norm of ones is never seen."""
        hidden = self.source.architecture.config.hidden_size
        for new, layer in enumerate(self.layers):
            if (written := self.written(layer)).heads > layer.heads:
                yield Entry(f"blk.{new}.attn_norm.weight", (hidden,), fill=1.0)
                for name in ("attn_q", "attn_k", "attn_v"):
                    yield Entry(f"blk.{new}.{name}.weight", (channels, hidden))
                yield Entry(f"blk.{new}.attn_output.weight", (hidden, channels))
            if written.width > layer.width:
                yield Entry(f"blk.{new}.ffn_norm.weight", (hidden,), fill=1.0)
                for name in ("ffn_gate", "ffn_up"):
                    yield Entry(f"blk.{new}.{name}.weight", (_ZERO_WIDTH, hidden))
                yield Entry(f"blk.{new}.ffn_down.weight", (hidden, _ZERO_WIDTH))

    def bytes(self, kind: str) -> int:
        """Bytes of the tensors, matrices stored as this type."""
        matrices = GGUF_TYPES[kind]
        return sum(_bytes(entry, matrices) for entry in self.entries)

    def compression(self, kind: str) -> tuple[Compression, ...]:
        """How the weights between embedding and head are stored, the type with the most first."""
        count: dict[GgufType, int] = {}
        for entry in self.entries:
            if entry.source and len(entry.shape) > 1 and self.source.architecture.split(entry.source)[0]:
                stored = entry.kind(GGUF_TYPES[kind])
                count[stored] = count.get(stored, 0) + entry.shape[0] * entry.shape[1]
        total = sum(count.values())
        parts = sorted(count.items(), key=lambda part: -part[1])
        return tuple(Compression(t.name, t.block if t.block > 1 else None, n / total) for t, n in parts)


def _llama_cpp(source: Source) -> LlamaCpp:
    model_type = source.architecture.model_type
    known = source.architecture.family.llama_cpp.get(model_type)
    if known is None:
        written = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.llama_cpp))
        raise LonasEdgeError(
            f"{source.base.folder}: --stage gguf does not write model_type {model_type!r}; it writes {written}. "
            "--stage ir and --stage checkpoint take it."
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
    vocabulary: Vocabulary,
    path: Path,
    kind: str,
    done: Callable[[float], None] = lambda _: None,
) -> None:
    """Write a sub-network as GGUF, one tensor in memory at a time.

    Args:
        layout: Its layout.
        model: The materialized model.
        vocabulary: Its tokenizer.
        path: The file.
        kind: Type of the matrices, one of `GGUF_TYPES`.
        done: Called with the share that is written.

    Raises:
        LonasEdgeError: If a tensor holds NaN or Inf, before or after the rounding; all are listed.
    """
    matrices = GGUF_TYPES[kind]
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_name(f"{model.source.base.name} {model.subnetwork.name}")
    _add_shape(writer, layout)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add_to(writer)
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
    """Add the fields that describe the network; of unequal layers a list of each."""
    config, layers = layout.source.architecture.config, [layout.written(layer) for layer in layout.layers]

    def of(name: str) -> Any:
        values = [getattr(layer, name) for layer in layers]
        return values[0] if layout.equal else values

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(of("width"))
    writer.add_head_count(of("heads"))
    writer.add_head_count_kv(of("key_value_heads"))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _rope_factors(config: Any) -> np.ndarray | None:
    """What llama.cpp divides the frequencies of rotary positions by, where they are scaled as LLaMA 3's are: [channels / 2]."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return None
    channels = head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    factors: np.ndarray = (plain / scaled).float().numpy()
    return factors


class GgufFile:
    """A GGUF file that was written, read again."""

    def __init__(self, path: Path, layout: Layout, kind: str):
        """Open it; weights stay on the disk.

        Args:
            path: The file.
            layout: What it should hold.
            kind: Type of its matrices.

        Raises:
            LonasEdgeError: If it holds other tensors than it should.
        """
        self._stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name != "rope_freqs.weight"}
        self._entries = {entry.source: entry for entry in layout.entries if entry.source}
        self._matrices = GGUF_TYPES[kind]
        wanted = {entry.name: _ggml(entry.kind(self._matrices)) for entry in layout.entries}
        found = {name: tensor.tensor_type for name, tensor in self._stored.items()}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        wrong += [
            entry.name
            for entry in layout.entries
            if entry.source is None and entry.name not in wrong and not (self._values(entry) == entry.fill).all()
        ]
        raise_all(f"{path}: verification failed: not the tensors that were to be written:", wrong, "Please report it.")

    def _values(self, entry: Entry) -> torch.Tensor:
        tensor = self._stored[entry.name]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(entry.shape))

    def restored(self, name: str, exact: torch.Tensor) -> tuple[torch.Tensor, float]:
        """A tensor as it is stored, and how far it is from what it was made of.

        Args:
            name: A tensor of the materialized model.
            exact: Its value there, not rounded.

        Returns:
            The stored tensor in fp32, in the model's order of rows, and the largest difference, in units of what rounding to
            its type explains.
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


def llama_cpp_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of llama.cpp, its KV cache in f32.

    Args:
        path: The file.
        ids: [prompts, tokens].

    Returns:
        [prompts, tokens, vocabulary], fp32.

    Raises:
        LonasEdgeError: If llama.cpp refuses the file.
    """
    llama = _llama(path, len(ids[0]))
    found = []
    for prompt in ids.tolist():
        llama.reset()
        llama.eval(prompt)
        found.append(torch.from_numpy(llama.scores[: len(prompt)].copy()))
    llama.close()
    return torch.stack(found)


def tokenizer_faults(path: Path, tokenizer: Any) -> list[str]:
    """Texts that llama.cpp cuts into other tokens than the tokenizer does; a line each.

    Args:
        path: The file.
        tokenizer: A transformers tokenizer.

    Returns:
        The lines.
    """
    llama = _llama(path, 32)
    faults = []
    for text in tried_texts():
        wanted, found = list(tokenizer(text)["input_ids"]), llama.tokenize(text.encode(), add_bos=True, special=True)
        if wanted != found:
            faults.append(f"{text!r}: expected {wanted}, found {found}")
    llama.close()
    return faults


def _llama(path: Path, context: int) -> Any:
    import llama_cpp

    said, f32 = _log(), llama_cpp.GGML_TYPE_F32
    options = {"logits_all": True, "type_k": f32, "type_v": f32, "flash_attn": False, "verbose": False}
    try:
        return llama_cpp.Llama(str(path), n_ctx=context, **options)
    except ValueError as error:
        reason = one_line("".join(said).strip().rpartition("\n")[2])
        raise LonasEdgeError(f"{path.name}: llama.cpp does not open it: {error}: {reason}") from error


@cache
def _log() -> "deque[str]":
    """The last lines that llama.cpp said, which would be printed otherwise."""
    import llama_cpp

    said: deque[str] = deque(maxlen=20)
    callback = llama_cpp.llama_log_callback(lambda _level, text, _data: said.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    _KEPT.append(callback)
    return said


_KEPT: list[Any] = []  # what C code calls
