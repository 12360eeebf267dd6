"""Options of `bench`."""

import os
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.variants import Case
from lonas_edge.options import COMMAS, Options, PathOrName, UserPath, base_model, option


@dataclass(frozen=True)
class BenchOptions(Options):
    """What `bench` measures.

    Attributes:
        torch_dtype: Dtype of the PyTorch variants.
        properties: OpenVINO runtime properties of every IR.
        cases: Prompt lengths and numbers of new tokens (0 for a classifier).
        schedule: Rounds, process starts, warm-ups, seed.
        cache: Directory that keeps exports of unpruned networks.
    """

    variants: Annotated[tuple[PathOrName, ...], COMMAS] | None = option(
        None,
        help="Variants: subnet (EXPORTED), lora and lora-merged (PyTorch), unpruned (IR), exported directories.",
        unset="those that differ from EXPORTED and are available",
    )
    cases: tuple[Case, ...] = (Case(256, 64),)
    schedule: Schedule = field(default_factory=Schedule)
    device: str = option("CPU", help="OpenVINO device of the IRs: CPU, GPU, NPU, AUTO or another.")
    torch_dtype: str = "fp32"
    properties: tuple[tuple[str, str], ...] = ()
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge"
    model: PathOrName | None = base_model("the recorded hub id", panel="Model")
    draft: UserPath | None = option(
        None, metavar="DIR", help="Draft model: adds the variant draft, EXPORTED with it; best with --data."
    )
    data: UserPath | None = option(
        None,
        exists=True,
        panel="Data",
        metavar="DATA",
        help="Answer prompts of this file, to their own ends, instead of random ones.",
    )
    adapter: PathOrName | None = option(
        None, panel="Model", help="Adapter, a directory or hub id.", unset="the recorded hub id"
    )
