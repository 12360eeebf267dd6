"""Options of `bench`."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.variants import Case
from lonas_edge.formats import DTYPES
from lonas_edge.options import Checked, option, parse_property


@dataclass(frozen=True)
class BenchOptions(Checked):
    """What `bench` measures.

    Attributes:
        cases: Prompt lengths, numbers of new tokens (0 for a classifier), and batch sizes.
        schedule: Rounds, process starts, warm-ups, seed.
        cache: Directory that keeps exports of unpruned networks.
    """

    arms: tuple[str, ...] | None = option(
        None,
        path=True,
        help="Variants: subnet (EXPORTED), lora and lora-merged (PyTorch), unpruned (IR), exported directories.",
        unset="those that differ from EXPORTED and are available",
    )
    cases: tuple[Case, ...] = (Case(256, 64),)
    schedule: Schedule = field(default_factory=Schedule)
    device: str = option("CPU", help="OpenVINO device of the IRs: CPU, GPU, NPU, AUTO or another.")
    torch_dtype: str = option("fp32", panel="Device", choices=tuple(DTYPES), help="Dtype of the PyTorch variants.")
    threads: int | None = option(
        None, panel="Device", minimum=1, help="CPU threads of every variant.", unset="one per physical core"
    )
    properties: tuple[tuple[str, str], ...] = option(
        (),
        panel="Device",
        flag="property",
        metavar="NAME=VALUE",
        repeat=True,
        parse=parse_property,
        help="OpenVINO runtime property of every IR.",
    )
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge"
    model: str | None = option(
        None,
        panel="Model",
        path=True,
        help="Base model, a directory or hub id (ID or ID@REVISION).",
        unset="the recorded hub id",
    )
    adapter: str | None = option(
        None,
        panel="Model",
        path=True,
        help="Adapter, a directory or hub id.",
        unset="the recorded hub id",
    )
