"""`lonas_edge.compress`, the command `compress` as a function."""

from collections.abc import Sequence
from pathlib import Path

from lonas_edge.pipeline.options import AUTO, KEEP, CompressOptions
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.run import Reference, compress_model
from lonas_edge.progress import Progress, silent


def compress(
    source: str | Path,
    *,
    data: str | Path,
    output: str | Path,
    model: str | Path | None = None,
    nncf_config: str | Path | None = None,
    target: str | Sequence[str] = AUTO,
    weight_format: str | None = None,
    vocabulary: str | int = KEEP,
    eval_data: str | Path | None = None,
    prompt: str | None = None,
    epochs: float | None = None,
    recovery_steps: int | None = None,
    precision: str = "auto",
    seed: int = 42,
    prompt_len: int | None = None,
    new_tokens: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> CompressRecord:
    """Make a model or LoRA adapter smaller and faster. The options are those of `lonas-edge compress`.

    Args:
        source: Base model or LoRA adapter: a directory or hub id.
        data: Training data.
        output: Directory to write; an interrupted run there continues.
        model: Base model of an adapter.
        nncf_config: Search space of an adapter.
        target: One bound, or several for one network each.
        weight_format: Weight format of the result; by default INT4, of encoders INT8.
        vocabulary: `keep`, `auto` or the number of tokens to keep.
        eval_data: Held-out data.
        prompt: Prompt template.
        epochs: Passes over the data of the LoRA fine-tuning; 1 by default.
        recovery_steps: Steps of the recovery.
        precision: Compute precision of the trainings.
        seed: Random seed.
        prompt_len: Prompt tokens of the latencies, or those of an encoder's texts.
        new_tokens: Generated tokens of the latencies.
        overwrite: Whether finished steps whose options have changed are repeated.
        progress: Called with what is being done, and the share that is done where known.

    Returns:
        The record, as written to `compress.json`; `folder` of its networks is their directory in `output`.

    Raises:
        LonasEdgeError: If inputs do not fit, or a step fails; finished steps are kept.
    """
    options = CompressOptions(
        data=Path(data),
        output=Path(output),
        target=(target,) if isinstance(target, str) else tuple(target),
        weight_format=weight_format,
        vocabulary=str(vocabulary),
        eval_data=None if eval_data is None else Path(eval_data),
        prompt=prompt,
        epochs=epochs,
        recovery_steps=recovery_steps,
        precision=precision,
        seed=seed,
        prompt_len=prompt_len,
        new_tokens=new_tokens,
        overwrite=overwrite,
    )
    space = None if nncf_config is None else Path(nncf_config)
    record = compress_model(Reference(str(source), None if model is None else str(model), space), options, progress)
    assert record  # there is none for --dry-run only
    return record
