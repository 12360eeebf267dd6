"""`lonas_edge.compress`, the command `compress` as a function."""

from pathlib import Path
from typing import Any

from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.run import compress_model
from lonas_edge.progress import Progress, silent


def compress(source: str | Path, *, progress: Progress = silent, **options: Any) -> CompressRecord:
    """Make a model or LoRA adapter smaller and faster.

    Args:
        source: Base model or LoRA adapter: a directory or hub id.
        progress: Called with what is being done, and the share that is done where known.
        options: The options of `lonas-edge compress`, by name: `data`, `output`, `model`, `target` (one or several) …

    Returns:
        The record, as written to `compress.json`; `folder` of its networks is their directory in `output`.

    Raises:
        LonasEdgeError: If inputs do not fit, or a step fails; finished steps are kept.
    """
    if isinstance(options.get("target"), str):
        options["target"] = (options["target"],)
    for name in ("model", "vocabulary"):
        if options.get(name) is not None:
            options[name] = str(options[name])
    record = compress_model(CompressOptions(**{**options, "source": str(source), "dry_run": False}), progress)
    assert record  # there is none for --dry-run only
    return record
