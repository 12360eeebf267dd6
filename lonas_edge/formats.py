"""Weight formats of an IR and dtypes; the command line takes its choices from here."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


PER_CHANNEL = -1  # a group size: all columns of a row share a scale (NNCF's convention)


@dataclass(frozen=True)
class Dtype:
    """A floating-point type of weights; `kv_name` is OpenVINO's name, as of a KV cache."""

    name: str
    torch_name: str
    bytes: int
    kv_name: str

    @property
    def torch(self) -> "torch.dtype":
        """The same type in PyTorch."""
        import torch

        dtype: torch.dtype = getattr(torch, self.torch_name)
        return dtype


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("fp32", "float32", 4, "f32"),
        Dtype("fp16", "float16", 2, "f16"),
        Dtype("bf16", "bfloat16", 2, "bf16"),
    )
}


def dtype_of(torch_dtype: object) -> Dtype:
    """Return the dtype of a `torch.dtype` or its name; fp32 for None and for types that are not in `DTYPES`."""
    name = str(torch_dtype).removeprefix("torch.")
    return next((dtype for dtype in DTYPES.values() if dtype.torch_name == name), DTYPES["fp32"])


_SCALE_BITS = 16


@dataclass(frozen=True)
class WeightFormat:
    """Storage of weight matrices in an IR.

    Attributes:
        name: Its name on the command line and in records.
        bits: Bits of a weight.
        mode: Name of its `nncf.CompressWeightsMode`; None for floating-point formats.
        zero_point_bits: Bits of the zero point of each row or group; 0 for symmetric formats.
        group_sizes: Columns that share a scale, in order of preference; empty if rows share one.
        outer: Name of the format of embedding, head and the layers that training keeps in it; also of all layers if no group
            size divides all input widths. None if it is the format itself.
        tolerance: Largest distance of a correctly stored weight from its original, in the units of
            `ir.compress.Compressed.restore`.
        kv_cache: KV cache precision (OpenVINO's name) that stock clients choose for such an IR on a CPU (2026.4.1).
        head: Format of a language-model head and of an embedding that shares its weight; None if it is that of the embedding.
    """

    name: str
    bits: int
    mode: str | None = None
    zero_point_bits: int = 0
    group_sizes: tuple[int, ...] = ()
    outer: str | None = None
    tolerance: float = 1.0
    kv_cache: str = "u8"
    head: "WeightFormat | None" = None

    def group_size(self, in_features: Iterable[int]) -> int | None:
        """Return the preferred group size that divides all of these input widths, or None."""
        widths = set(in_features)
        return next((size for size in self.group_sizes if not indivisible(widths, size)), None)

    def with_group_size(self, size: int | None) -> "WeightFormat":
        """Return the format with this group size only, its head too; unchanged if None or without groups."""
        head = self.head.with_group_size(size) if self.head else None
        return replace(self, group_sizes=(size,) if size and self.group_sizes else self.group_sizes, head=head)

    def with_head(self, name: str | None) -> "WeightFormat":
        """Return the format with its head in the format of this name; unchanged if None."""
        return replace(self, head=FORMATS[name]) if name else self

    def of_head(self, columns: int) -> tuple["WeightFormat", int | None]:
        """Return format and group size of a head [vocabulary, columns], which sub-networks share: layers have no part in it."""
        head = self.head or self.chosen(outer=True, group_size=None)
        group = head.group_size([columns])
        return head.chosen(outer=False, group_size=group), group

    def chosen(self, outer: bool, group_size: int | None) -> "WeightFormat":
        """Return the format of one matrix: `outer` for embedding and head, or if the model has no group size."""
        return FORMATS[self.outer] if self.outer and (outer or group_size is None) else self

    def matrix_bytes(self, rows: int, columns: int, group_size: int | None) -> float:
        """Return the bytes of a matrix [rows, columns] with scales and zero points; may end in a fraction of a byte."""
        groups = columns // group_size if self.group_sizes and group_size and group_size != PER_CHANNEL else 1
        per_group = _SCALE_BITS + self.zero_point_bits if self.mode else 0
        return (rows * columns * self.bits + rows * groups * per_group) / 8


_GROUPS = (128, 192, 96, 64, 32)  # 128 is the usual one; larger groups decode faster: docs/benchmarks/latency.md

# Symmetric codes reach from -8 to 7 (-128 to 127) of a signed scale: the largest weight of the other sign may be a full scale
# off, and a scale in fp16 is itself off by 2^-11.
_SYMMETRIC_TOLERANCE = 1.1

FORMATS = {
    weight_format.name: weight_format
    for weight_format in (
        WeightFormat("fp32", 32, kv_cache="f16"),
        WeightFormat("fp16", 16, kv_cache="f16"),
        WeightFormat("int8", 8, "INT8_ASYM", zero_point_bits=8),
        WeightFormat("int8_sym", 8, "INT8_SYM", tolerance=_SYMMETRIC_TOLERANCE),
        WeightFormat("int4", 4, "INT4_ASYM", 4, _GROUPS, outer="int8"),
        WeightFormat("int4_sym", 4, "INT4_SYM", 0, _GROUPS, outer="int8", tolerance=_SYMMETRIC_TOLERANCE),
    )
}


def indivisible(widths: Iterable[int], group_size: int) -> list[int]:
    """Return the distinct widths that a group size does not divide, in order; `PER_CHANNEL` divides all."""
    return [] if group_size == PER_CHANNEL else sorted({width for width in widths if width % group_size})


# Activations that share a scale when a CPU multiplies compressed weights, in order of preference; the plugin's default is 32.
# Of 64 to 576, 192 is fastest for SmolLM2-135M: docs/benchmarks/latency.md.
_ACTIVATION_GROUPS = (256, 192, 128, 96, 64)


def activation_group(widths: Iterable[int], weight_group: int) -> int | None:
    """Return the preferred group size of the activations that divides all input widths, or None.

    `weight_group` is that of the weights, or `PER_CHANNEL`. It is the upper limit: a larger group is slower than the default
    (openvino 2026.4.1).
    """
    widths, grouped = set(widths), weight_group != PER_CHANNEL
    sizes = (size for size in _ACTIVATION_GROUPS if not (grouped and weight_group < size))
    return next((size for size in sizes if not indivisible(widths, size)), None)


INTEGER_FORMATS = tuple(name for name, known in FORMATS.items() if known.mode)
DEFAULT_FORMAT = "int8_sym"  # as accurate as int8, and never slower: docs/benchmarks/quantization.md
METHOD = "gptq"  # of compression on data, the most accurate: docs/benchmarks/quantization.md, docs/benchmarks/vocabulary.md
