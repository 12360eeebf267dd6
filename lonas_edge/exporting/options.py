"""The options of an export."""

from dataclasses import dataclass
from pathlib import Path

from lonas_edge.formats import DEFAULT_FORMAT, DEFAULT_GGUF_TYPE, DEFAULT_METHOD, FORMATS, WeightFormat
from lonas_edge.network.solved import SOLVE_PROMPTS

CALIBRATION_PROMPTS = 64


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        weight_format: Storage of the IR's weights, one of `FORMATS`.
        stage: Where to stop, one of `STAGES`.
        dtype: Dtype of a checkpoint, one of `DTYPES`; the base's when None.
        gguf_type: Storage of a GGUF file's matrices, one of `GGUF_TYPES`.
        verify: Whether to compare logits and refuse a model beyond the tolerance.
        overwrite: Whether to replace an existing output.
        solve: Instruction data for least-squares reconstruction; none when None.
        solve_prompts: Prompts of it; an eighth as many more are held out to measure the effect.
        fuse: Whether to store an IR's matrices with the same input as one (`ir.fuse`).
        group_size: Columns that share a scale, or `PER_CHANNEL`; the format's choice when None.
        ratio: Largest share of the layers' weights in the format; the rest gets that of embedding and head.
        calibration: Instruction data for INT4 compression; without data when None.
        int4_method: Compression method on this data, one of `METHODS`.
        calibration_prompts: Prompts of this data.
        server: Server to write files for, one of `SERVERS`; none when None.
        compare_texts: Whether to compare texts that the IR generates with those of the fp32 sub-network.
    """

    weight_format: str = DEFAULT_FORMAT
    stage: str = "ir"
    dtype: str | None = None
    gguf_type: str = DEFAULT_GGUF_TYPE
    verify: bool = True
    overwrite: bool = False
    solve: Path | None = None
    solve_prompts: int = SOLVE_PROMPTS
    fuse: bool = True
    group_size: int | None = None
    ratio: float = 1.0
    calibration: Path | None = None
    int4_method: str = DEFAULT_METHOD
    calibration_prompts: int = CALIBRATION_PROMPTS
    server: str | None = None
    compare_texts: bool = False

    @property
    def stored_as(self) -> WeightFormat:
        """The IR's format with the requested group size."""
        return FORMATS[self.weight_format].with_group_size(self.group_size)
