"""`lonas-edge compress`: from a model or adapter to a smaller model that runs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.cli import terminal
from lonas_edge.cli.command import command
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.progress import Progress
from lonas_edge.tables import Table, duration

if TYPE_CHECKING:
    from lonas_edge.pipeline.record import CompressRecord
    from lonas_edge.pipeline.steps import Step


@command
def run(options: CompressOptions) -> None:
    """Make a model or LoRA adapter smaller and faster, and measure what it costs.

    Fine-tunes a LoRA (skipped for an adapter, and by --epochs 0), searches what to remove on this machine,
    recovers the accuracy with the unpruned model as teacher, exports to OpenVINO, trains a draft model, and compares with what
    optimum-cli writes. Embedding models, rerankers and classifiers are not fine-tuned; encoders lose whole layers. Ctrl-C is
    safe: the same command continues.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with terminal.progress(left=False) as report:
        from lonas_edge.pipeline.run import compress_model

        record = compress_model(options, report, _announce)
    if record:
        _print(record, options.output)


def compress(source: str | Path, *, progress: Progress | None = None, **options: Any) -> "CompressRecord | None":
    """Make a model or LoRA adapter smaller and faster.

    Args:
        source: Base model or LoRA adapter: a directory or hub id.
        progress: Called with what is being done, and the share that is done where known; a bar when None.
        options: The options of `lonas-edge compress`, by name: `data`, `output`, `model`, `target` (one or several) …

    Returns:
        The record, as written to `compress.json`, which a notebook shows as a table; `folder` of its networks is their
        directory in `output`. None for a dry run.

    Raises:
        LonasEdgeError: If inputs do not fit, or a step fails; finished steps are kept.
    """
    from lonas_edge.pipeline.run import compress_model

    if isinstance(options.get("target"), str):
        options["target"] = (options["target"],)
    for name in ("model", "vocabulary"):
        if options.get(name) is not None:
            options[name] = str(options[name])
    with nullcontext(progress) if progress else terminal.progress(left=False) as report:
        announce = {} if progress else {"announce": _announce}
        return compress_model(CompressOptions(**{**options, "source": str(source)}), report, **announce)


def _announce(steps: "Sequence[Step]", needed: Mapping[str, int]) -> None:
    """Show what the pending steps will take."""
    if not steps:
        return
    shown = terminal.console(stderr=True)
    Table(("step", "estimated time"), [(step.name, duration(step.estimate)) for step in steps]).print(shown)
    shown.print(f"memory {needed['memory_bytes'] / 1e9:.1f} GB, disk {needed['disk_bytes'] / 1e9:.1f} GB")


def _print(record: "CompressRecord", output: Path) -> None:
    from lonas_edge.pipeline.report import step_table, summary
    from lonas_edge.pipeline.tasks import PROFILES

    shown = terminal.console()
    step_table(record).print(shown)
    record.table().print(shown, turn=True)
    for sentence in summary(record):
        shown.print(sentence)
    folders = [output / network.folder for network in record.networks if network.folder]
    for folder in folders:
        shown.print(f"{folder}: {PROFILES[record.task].usage.format(folder)}")
    shown.print(f"{output / 'report.html'}: all figures and plots")
