"""`lonas_edge.compress`, the command `compress` as a function."""

from pathlib import Path
from typing import Any

from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.run import Reference, compress_model
from lonas_edge.progress import Progress, silent


def compress(
    source: str | Path,
    *,
    model: str | Path | None = None,
    nncf_config: str | Path | None = None,
    progress: Progress = silent,
    **options: Any,
) -> CompressRecord:
    """Make a model or LoRA adapter smaller and faster.

    Args:
        source: Base model or LoRA adapter: a directory or hub id.
        model: Base model of an adapter.
        nncf_config: Search space of an adapter.
        progress: Called with what is being done, and the share that is done where known.
        options: The options of `lonas-edge compress`, by name: `data`, `output`, `target` (one or several), `weight_format` …

    Returns:
        The record, as written to `compress.json`; `folder` of its networks is their directory in `output`.

    Raises:
        LonasEdgeError: If inputs do not fit, or a step fails; finished steps are kept.
    """
    if isinstance(options.get("target"), str):
        options["target"] = (options["target"],)
    if "vocabulary" in options:
        options["vocabulary"] = str(options["vocabulary"])
    space = None if nncf_config is None else Path(nncf_config)
    reference = Reference(str(source), None if model is None else str(model), space)
    record = compress_model(reference, CompressOptions(**{**options, "dry_run": False}), progress)
    assert record  # there is none for --dry-run only
    return record
