"""What a benchmark is asked for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lonas_edge.bench.arms import LORA, SUBNET, UNPRUNED, Case
from lonas_edge.bench.measure import Schedule


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        arms: Names of arms (`making.ARMS`), further exported directories, and .gguf files.
        cases: Prompt lengths, numbers of new tokens (0 for a classifier) and batch sizes.
        schedule: Rounds in all, warm-ups at every start, seed.
        starts: How often the arms are started afresh; the rounds are divided among the starts.
        device: OpenVINO device of the IRs.
        torch_device: cpu or cuda, for the PyTorch arms.
        torch_dtype: One of `DTYPES`, for the PyTorch arms.
        threads: Threads of every arm on a CPU; one for each physical core when None.
        kv_precision: Precision of the KV cache of every IR; when None, what the tuned properties say, or what stock clients
            give the sub-network's weight format.
        properties: OpenVINO run-time properties of every IR, over all others.
        gguf: A GGUF file for the arm `gguf`.
        assistant_tokens: Tokens that the draft of the arm `draft` proposes at a time; an arm for each.
        data: Instruction data, conversations or texts that prompts are taken of; random tokens when None. The prompt length of
            the cases is then the most that a prompt may have.
        memory: Whether peak memory is measured, in a run of its own for each arm.
        cache: Where exports of unpruned models are kept.
        model: The base model, where an arm needs it; when None, where it was.
        adapter: The adapter; when None, where it was.
        revision: The base's revision on the hub.
    """

    arms: tuple[str, ...] = (SUBNET, LORA, UNPRUNED)
    cases: tuple[Case, ...] = (Case(256, 64),)
    schedule: Schedule = field(default_factory=Schedule)
    starts: int = 8
    device: str = "CPU"
    torch_device: str = "cpu"
    torch_dtype: str = "fp32"
    threads: int | None = None
    kv_precision: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    gguf: Path | None = None
    assistant_tokens: tuple[int, ...] = (3,)
    data: Path | None = None
    memory: bool = True
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge"
    model: str | None = None
    adapter: str | None = None
    revision: str | None = None

    @property
    def starts_done(self) -> int:
        """Starts that the rounds are enough for."""
        return min(self.starts, self.schedule.rounds)
