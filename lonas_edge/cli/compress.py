"""`lonas-edge compress`: from a model or adapter to a smaller model that runs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.cli.command import command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.tables import Table, duration

if TYPE_CHECKING:
    from lonas_edge.pipeline.record import CompressRecord
    from lonas_edge.pipeline.steps import Step


@command
def run(options: CompressOptions) -> None:
    """Make a model or LoRA adapter smaller and faster, and measure what it costs.

    Fine-tunes a LoRA (skipped for an adapter), searches which attention blocks to remove on this machine, recovers the
    accuracy with the unpruned model as teacher, exports to OpenVINO, and compares with what optimum-cli writes. Encoders
    (embedding models, rerankers, classifiers) are not fine-tuned, and lose whole layers. Ctrl-C is safe: the same command
    continues.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with progress(left=False) as report:
        from lonas_edge.pipeline.run import compress_model

        record = compress_model(options, report, _announce)
    if record:
        _print(record, options.output)


def _announce(steps: "Sequence[Step]", needed: Mapping[str, int]) -> None:
    """Show what the pending steps will take."""
    if not steps:
        return
    terminal = console(stderr=True)
    Table(("step", "estimated time"), [(step.name, duration(step.estimate)) for step in steps]).print(terminal)
    terminal.print(f"memory {needed['memory_bytes'] / 1e9:.1f} GB, disk {needed['disk_bytes'] / 1e9:.1f} GB")


def _print(record: "CompressRecord", output: Path) -> None:
    from lonas_edge.pipeline.report import network_table, step_table, summary
    from lonas_edge.pipeline.tasks import PROFILES

    terminal = console()
    step_table(record).print(terminal)
    network_table(record).print(terminal, turn=True)
    for sentence in summary(record):
        terminal.print(sentence)
    folders = [output / network.folder for network in record.networks if network.folder]
    for folder in folders:
        terminal.print(f"{folder}: {PROFILES[record.task].usage.format(folder)}")
    terminal.print(f"{output / 'report.html'}: all figures and plots")
