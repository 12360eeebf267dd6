"""Variants that run in this process with made-up times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from lonas_edge.bench.variants import Placement, Timing, Variant
from lonas_edge.bench.worker import VariantFailedError

SMOLLM2 = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "vocab_size": 49152,
}
FACTS = {
    "peak_memory_bytes": 400_000_000,
    "disk_bytes": 120_000_000,
    "kv_precision": "u8",
}


@dataclass
class Fakes:
    """Fake processes.

    Attributes:
        times: TTFT and TPOT of a variant, in seconds.
        started: The variants, in the order of starts.
        prompts: Prompts that a variant received, by name.
        fails: Raises an error instead of loading (`load`) or of a run (its number) of a variant.
    """

    times: Callable[[Variant], tuple[float, float]] = lambda _variant: (0.1, 0.01)
    started: list[Variant] = field(default_factory=list)
    prompts: dict[str, list[Sequence[Sequence[int]]]] = field(default_factory=dict)
    fails: dict[tuple[str, str | int], BaseException] = field(default_factory=dict)


class FakeProcess:
    """A `VariantProcess` without a process."""

    pid, alive = None, True

    def __init__(self, fakes: Fakes, variant: Variant, placement: Placement):
        self.fakes, self.variant, self.runs = fakes, variant, 0
        fakes.started.append(variant)

    def wait_loaded(self) -> float:
        self._fail("load")
        return 1.5

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        received = self.fakes.prompts.setdefault(self.variant.name, [])
        received.append(prompts)
        self._fail(len(received))
        self.runs += 1
        ttft, tpot = self.fakes.times(self.variant)
        noise = 1 + 0.001 * self.runs
        times = tuple(noise * (ttft + tpot * index) for index in range(new_tokens))
        return Timing(times, times[-1] if times else noise * ttft)

    def facts(self) -> dict[str, Any]:
        return FACTS

    def _fail(self, moment: str | int) -> None:
        error = self.fakes.fails.get((self.variant.name, moment))
        if isinstance(error, VariantFailedError):
            raise VariantFailedError(f"{self.variant.name}: {error}")
        if error:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
