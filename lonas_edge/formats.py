"""How weights are stored: one object a weight format of an IR, one a dtype; the command line takes its choices from here."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


WHOLE_ROWS = -1  # a group size: all columns of a row share a scale (NNCF's convention)


@dataclass(frozen=True)
class Dtype:
    """A floating-point type of weights.

    Attributes:
        name: What it is called on the command line and in records.
        torch_name: What PyTorch calls it.
        bytes: Bytes of an element.
        kv_name: What OpenVINO calls it, as of a KV cache.
    """

    name: str
    torch_name: str
    bytes: int
    kv_name: str

    @property
    def torch(self) -> "torch.dtype":
        """PyTorch's own."""
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
    """The dtype that PyTorch calls so; fp32 for what is none of ours, which is how configurations that name none are meant.

    Args:
        torch_dtype: A `torch.dtype`, its name, or None.

    Returns:
        The dtype.
    """
    name = str(torch_dtype).removeprefix("torch.")
    return next((dtype for dtype in DTYPES.values() if dtype.torch_name == name), DTYPES["fp32"])


@dataclass(frozen=True)
class GgufType:
    """How a GGUF file stores weight matrices.

    Attributes:
        name: What it is called on the command line and in records, as llama.cpp's own converter calls it.
        block: Columns that go together; rows that are no multiple of it get `otherwise`.
        block_bytes: Bytes of as many.
        otherwise: Name of the type of other rows; None where there are none.
    """

    name: str
    block: int
    block_bytes: int
    otherwise: str | None = None

    def of(self, columns: int) -> "GgufType":
        """The type that a matrix of so many columns gets."""
        return GGUF_TYPES[self.otherwise] if self.otherwise and columns % self.block else self

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix [rows, columns]."""
        chosen = self.of(columns)
        return rows * columns // chosen.block * chosen.block_bytes


GGUF_TYPES = {
    gguf_type.name: gguf_type
    for gguf_type in (
        GgufType("f32", 1, 4),
        GgufType("f16", 1, 2),
        GgufType("bf16", 1, 2),
        GgufType("q8_0", 32, 34, "f16"),
    )
}
DEFAULT_GGUF_TYPE = "q8_0"


@dataclass(frozen=True)
class WeightFormat:
    """How an IR stores weight matrices.

    Attributes:
        name: What it is called on the command line and in records.
        bits: Bits of a weight.
        mode: NNCF's name of it, a `nncf.CompressWeightsMode`; None where weights are stored as numbers, not as codes.
        zero_point_bits: Bits of the zero point of each row or group; 0 where it has none.
        scale_bits: Bits of the scale of each row or group.
        group_sizes: Columns that share a scale, the preferred number first, `WHOLE_ROWS` among them where a row may; none where
            the format knows no groups.
        one_group_size: Whether no other group size may be asked for.
        outer: Name of the format of embedding and head, of what `export --ratio` leaves to it, and of every layer where no
            group size divides all input widths; None where it is the format itself.
        data_aware: Whether NNCF's methods that look at data know it.
        tolerance: How far a faultless stored weight is from what it was made of, at most, in the units of
            `ir.compress.Compressed.restored`.
        kv_cache: OpenVINO's name of the KV cache's precision that stock clients give such an IR on a CPU (2026.4.1).
    """

    name: str
    bits: int
    mode: str | None = None
    zero_point_bits: int = 0
    scale_bits: int = 16
    group_sizes: tuple[int, ...] = ()
    one_group_size: bool = False
    outer: str | None = None
    data_aware: bool = False
    tolerance: float = 0.0
    kv_cache: str = "f16"

    def group_size(self, in_features: Iterable[int]) -> int | None:
        """The first of its group sizes that divides the input width of every layer, or None.

        Args:
            in_features: Input widths of the layers, embedding and head left out.

        Returns:
            Columns of a group.
        """
        widths = set(in_features)
        return next((size for size in self.group_sizes if not misfits(size, widths)), None)

    def with_group_size(self, size: int | None) -> "WeightFormat":
        """The format with one group size.

        Args:
            size: Columns that share a scale; None for the format as it is.

        Returns:
            The format.
        """
        return replace(self, group_sizes=(size,)) if size else self

    def chosen(self, outer: bool, group_size: int | None) -> "WeightFormat":
        """The format that one matrix gets: this one, or that of embedding and head.

        Args:
            outer: Whether it is embedding or head.
            group_size: What `group_size` gives for the whole model.

        Returns:
            The format.
        """
        return FORMATS[self.outer] if self.outer and (outer or group_size is None) else self

    def matrix_bytes(self, rows: int, columns: int, group_size: int | None) -> float:
        """Bytes of a matrix [rows, columns], scales and zero points included.

        Args:
            rows: Its rows.
            columns: Its columns.
            group_size: Columns that share a scale; whole rows where the format has no groups.

        Returns:
            The bytes; those of a part of a byte included.
        """
        groups = columns // group_size if self.group_sizes and group_size and group_size != WHOLE_ROWS else 1
        each = (self.scale_bits + self.zero_point_bits) / 8 if self.mode else 0
        return rows * columns * self.bits / 8 + rows * groups * each


_GROUPS = (128, 64, 32)

# Tolerances of formats without a zero point, in scales: symmetric codes reach from -8 to 7 (-128 to 127) of a signed scale, so
# that the largest weight of the other sign may be a whole scale off; half of the widest gap between numbers is 0.152 for nf4,
# 1 for mxfp4 (4 to 6) and 16 for fp8 (416 to 448); a scale in fp16 is itself off by 2^-11, and
# fp8 is made of fp16.
FORMATS = {
    weight_format.name: weight_format
    for weight_format in (
        WeightFormat("fp32", 32, tolerance=1.0),
        WeightFormat("fp16", 16, tolerance=1.0),
        WeightFormat("int8", 8, "INT8_ASYM", 8, tolerance=1.0, kv_cache="u8"),
        WeightFormat("int8_sym", 8, "INT8_SYM", tolerance=1.1, kv_cache="u8"),
        WeightFormat("int4", 4, "INT4_ASYM", 4, 16, _GROUPS, outer="int8", data_aware=True, tolerance=1.0, kv_cache="u8"),
        WeightFormat("int4_sym", 4, "INT4_SYM", 0, 16, _GROUPS, outer="int8", data_aware=True, tolerance=1.1, kv_cache="u8"),
        WeightFormat("nf4", 4, "NF4", 0, 16, _GROUPS, outer="int8", tolerance=0.16, kv_cache="u8"),
        WeightFormat("mxfp4", 4, "MXFP4", 0, 8, (32,), True, outer="int8", tolerance=1.01, kv_cache="u8"),
        WeightFormat("fp8", 8, "FP8_E4M3", 0, 16, (WHOLE_ROWS,), outer="int8", tolerance=16.5, kv_cache="u8"),
    )
}


def misfits(group_size: int, widths: Iterable[int]) -> list[int]:
    """The widths that a group size does not divide.

    Args:
        group_size: Columns that share a scale; `WHOLE_ROWS` fits all.
        widths: Numbers of columns.

    Returns:
        Those, once each, in order.
    """
    return [] if group_size == WHOLE_ROWS else sorted({width for width in widths if width % group_size})


@dataclass(frozen=True)
class Method:
    """A way to compress that looks at data.

    Attributes:
        name: What it is called on the command line and in records.
        options: What NNCF calls it: the options of `nncf.compress_weights` that are switched on.
    """

    name: str
    options: tuple[str, ...]


METHODS = {
    method.name: method
    for method in (
        Method("scale-estimation", ("scale_estimation",)),
        Method("awq", ("awq",)),
        Method("awq-scale-estimation", ("awq", "scale_estimation")),
        Method("gptq", ("gptq",)),
        Method("gptq-scale-estimation", ("gptq", "scale_estimation")),
    )
}
DEFAULT_FORMAT = "int8_sym"  # as near as int8, and faster on every processor measured: docs/guide/export.md
DRAFT_FORMAT = "int4"  # a draft's, whose mistakes cost time and no answers
DEFAULT_METHOD = "gptq"  # of the measurements in docs/guide/export.md
