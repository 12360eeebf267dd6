"""The options of an export."""

from collections.abc import Iterator

from pydantic.dataclasses import dataclass

from lonas_edge.exporting.clients import STAGES
from lonas_edge.formats import DEFAULT_FORMAT, DTYPES, FORMATS, INTEGER_FORMATS, PER_CHANNEL, WeightFormat
from lonas_edge.options import Options, UserPath, option

_GROUPED = tuple(name for name, known in FORMATS.items() if known.group_sizes)
_STAGES = {"weight_format": "ir", "head_format": "ir", "dtype": "checkpoint"}


@dataclass(frozen=True)
class ExportOptions(Options):
    """What to write."""

    weight_format: str = option(
        DEFAULT_FORMAT,
        choices=tuple(FORMATS),
        help="Format of the IR's weights; in the INT4 formats embedding and head stay INT8.",
    )
    stage: str = option("ir", choices=tuple(STAGES), help="OpenVINO IR, or Hugging Face checkpoint (sliced and merged).")
    calibration: UserPath | None = option(
        None,
        exists=True,
        panel="Data",
        metavar="DATA",
        help="Training data for INT4 compression of layers, unless trained for it, and of an INT4 head, by GPTQ.",
        unset="compression without data",
    )
    dtype: str | None = option(
        None, panel="Output", choices=tuple(DTYPES), help="Dtype of the checkpoint.", unset="the base model's"
    )
    overwrite: bool = option(False, panel="Output", help="Replace an existing output.")
    group_size: int | None = option(
        None,
        panel="Advanced",
        minimum=PER_CHANNEL,
        help=f"Quantization group size; {PER_CHANNEL} for per-channel.",
        unset="the first of 128, 192, 96, 64 and 32 that divides all widths",
    )
    head_format: str | None = option(
        None,
        panel="Advanced",
        choices=INTEGER_FORMATS,
        help="Format of the output head, and of an embedding that shares its weight; INT4 needs data, see --calibration.",
        unset="INT8 for INT4 weights, else --weight-format",
    )
    prompt: str | None = None  # the prompt template of a model without a training record
    fuse: bool = True  # merge matrices with the same input (q, k and v) into one product
    verify: bool = option(True, hidden=True, help="Compare logits with the super-network's, and fail if they differ.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        for name, stage in _STAGES.items():
            if self.given(name) and self.stage != stage:
                yield f"--{name.replace('_', '-')} needs --stage {stage}"
        formats = {"calibration": _GROUPED, "group_size": _GROUPED, "head_format": INTEGER_FORMATS}
        for name, known in formats.items():
            if self.given(name) and self.weight_format not in known:
                yield f"--{name.replace('_', '-')} needs --weight-format {' or '.join(known)}"
        if self.group_size == 0:
            yield f"--group-size 0: expected a number of columns, or {PER_CHANNEL} for complete rows"

    @property
    def stored_as(self) -> WeightFormat:
        """The IR's format with the requested group size and format of the head."""
        return FORMATS[self.weight_format].with_head(self.head_format).with_group_size(self.group_size)
