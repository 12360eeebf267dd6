"""The options of an export."""

from dataclasses import dataclass
from pathlib import Path

from lonas_edge.exporting.ovms import SERVERS
from lonas_edge.exporting.stages import STAGES
from lonas_edge.formats import (
    DEFAULT_FORMAT,
    DEFAULT_METHOD,
    DTYPES,
    FORMATS,
    INTEGER_FORMATS,
    METHODS,
    PER_CHANNEL,
    WeightFormat,
)
from lonas_edge.options import Checked, option

_GROUPED = "weight_format=" + "|".join(name for name, known in FORMATS.items() if known.group_sizes)
_MIXED = "weight_format=" + "|".join(name for name, known in FORMATS.items() if known.outer)


def _group_size(text: str) -> int:
    size = int(text) if text.removeprefix("-").isdecimal() else 0
    if size < 1 and size != PER_CHANNEL:
        raise ValueError(f"{text}: expected a number of columns, or {PER_CHANNEL} for complete rows")
    return size


@dataclass(frozen=True)
class ExportOptions(Checked):
    """What to write."""

    weight_format: str = option(
        DEFAULT_FORMAT,
        choices=tuple(FORMATS),
        needs="stage=ir",
        help="Format of the IR's weights; in the INT4 formats embedding and head stay INT8.",
    )
    stage: str = option(
        "ir",
        choices=tuple(STAGES),
        help="OpenVINO IR, or Hugging Face checkpoint (sliced and merged).",
    )
    calibration: Path | None = option(
        None,
        panel="Data",
        metavar="DATA",
        needs=_GROUPED,
        help="Training data for INT4 compression of layers, unless trained for it, and of an INT4 head.",
        unset="compression without data",
    )
    int4_method: str = option(
        DEFAULT_METHOD,
        panel="Data",
        choices=tuple(METHODS),
        needs="calibration",
        help="NNCF's method for the layers with --calibration; the head has GPTQ.",
    )
    num_prompts: int = option(64, panel="Data", minimum=1, needs="calibration", help="Number of prompts from --calibration.")
    dtype: str | None = option(
        None,
        panel="Output",
        choices=tuple(DTYPES),
        needs="stage=checkpoint",
        help="Dtype of the checkpoint.",
        unset="the base model's",
    )
    server: str | None = option(
        None,
        panel="Output",
        choices=SERVERS,
        needs="stage=ir",
        help="Add the files that a server needs: OpenVINO Model Server.",
    )
    overwrite: bool = option(False, panel="Output", help="Replace an existing output.")
    group_size: int | None = option(
        None,
        panel="Advanced",
        parse=_group_size,
        metavar="INTEGER",
        needs=_GROUPED,
        help=f"Quantization group size; {PER_CHANNEL} for per-channel.",
        unset="the first of 128, 192, 96, 64 and 32 that divides all widths",
    )
    ratio: float = option(
        1.0,
        panel="Advanced",
        minimum=0,
        maximum=1,
        needs=_MIXED,
        help="Maximum share of layer weights in --weight-format; the most sensitive stay INT8.",
    )
    head_format: str | None = option(
        None,
        panel="Advanced",
        choices=INTEGER_FORMATS,
        needs="stage=ir weight_format=" + "|".join(INTEGER_FORMATS),
        help="Format of the output head, and of an embedding that shares its weight; INT4 needs data, see --calibration.",
        unset="INT8 for INT4 weights, else --weight-format",
    )
    fuse: bool = True  # merge matrices with the same input (q, k and v) into one product
    verify: bool = option(True, panel="Advanced", help="Compare logits with the super-network's, and fail if they differ.")

    @property
    def stored_as(self) -> WeightFormat:
        """The IR's format with the requested group size and format of the head."""
        return FORMATS[self.weight_format].with_head(self.head_format).with_group_size(self.group_size)
