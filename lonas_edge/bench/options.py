"""Options of `bench` and `bench --tune`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.variants import LORA, SUBNET, UNPRUNED, Case


@dataclass(frozen=True)
class BenchOptions:
    """What `bench` measures.

    Attributes:
        arms: Names of variants (`prepare.VARIANTS`), exported directories, and .gguf files.
        cases: Prompt lengths, numbers of new tokens (0 for a classifier), and batch sizes.
        schedule: Rounds, process starts, warm-ups, seed.
        device: OpenVINO device of the IRs.
        torch_device: cpu or cuda, for the PyTorch variants.
        torch_dtype: Key of `DTYPES`, for the PyTorch variants.
        threads: CPU threads of every variant; one per physical core when None.
        properties: OpenVINO runtime properties of every IR.
        cache: Directory that keeps exports of unpruned networks.
        model: Base model; the recorded one when None.
        adapter: Adapter; the recorded one when None.
        revision: Revision of the base model on the hub.
    """

    arms: tuple[str, ...] = (SUBNET, LORA, UNPRUNED)
    cases: tuple[Case, ...] = (Case(256, 64),)
    schedule: Schedule = field(default_factory=Schedule)
    device: str = "CPU"
    torch_device: str = "cpu"
    torch_dtype: str = "fp32"
    threads: int | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge"
    model: str | None = None
    adapter: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class TuneOptions:
    """What `bench --tune` minimizes: `objective`, a key of `OBJECTIVES`, in one case."""

    case: Case
    schedule: Schedule = field(default_factory=Schedule)
    device: str = "CPU"
    threads: int | None = None
    objective: str = "tpot"
