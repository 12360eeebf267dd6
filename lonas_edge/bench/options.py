"""Options of `bench`."""

import os
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.variants import Case
from lonas_edge.formats import DTYPES
from lonas_edge.options import COMMAS, Options, PathOrName, from_text, option


def _parse_property(text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (equals and name.isidentifier() and value):
        raise ValueError("expected NAME=VALUE")
    return name, value


Properties = tuple[Annotated[tuple[str, str], from_text(_parse_property)], ...]  # of the OpenVINO runtime


@dataclass(frozen=True)
class BenchOptions(Options):
    """What `bench` measures.

    Attributes:
        cases: Prompt lengths, numbers of new tokens (0 for a classifier), and batch sizes.
        schedule: Rounds, process starts, warm-ups, seed.
        cache: Directory that keeps exports of unpruned networks.
    """

    arms: Annotated[tuple[PathOrName, ...], COMMAS] | None = option(
        None,
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
    properties: Properties = option(
        (),
        panel="Device",
        flag="property",
        metavar="NAME=VALUE",
        repeat=True,
        help="OpenVINO runtime property of every IR.",
    )
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge"
    model: PathOrName | None = option(
        None,
        panel="Model",
        help="Base model, a directory or hub id (ID or ID@REVISION).",
        unset="the recorded hub id",
    )
    adapter: PathOrName | None = option(
        None,
        panel="Model",
        help="Adapter, a directory or hub id.",
        unset="the recorded hub id",
    )
