"""What latencies of a search are of: device, prompt, weight formats, and how often each is taken."""

from dataclasses import dataclass
from pathlib import Path

from lonas_edge.bench.variants import Case
from lonas_edge.formats import DEFAULT_FORMAT


@dataclass(frozen=True)
class CostSettings:
    """How a cost is counted or measured.

    Attributes:
        device: An OpenVINO device.
        prompt_len: Tokens of the prompt of a latency, or of a classifier's text.
        new_tokens: Tokens generated; 0 for a classifier.
        weight_formats: Weight formats of the IRs that are compared.
        threads: Threads on a CPU; one for each physical core when None.
        cache: Where tables and the networks that they are measured on are kept; the user's cache when None.
        rounds: How often every network is measured, over all starts.
        starts: How often all are started afresh.
        batch_size: Prompts or texts computed together.
    """

    device: str = "CPU"
    prompt_len: int = 256
    new_tokens: int = 64
    weight_formats: tuple[str, ...] = (DEFAULT_FORMAT,)
    threads: int | None = None
    cache: Path | None = None
    rounds: int = 12
    starts: int = 4
    batch_size: int = 1

    @property
    def case(self) -> Case:
        """What every network is measured at."""
        return Case(self.prompt_len, self.new_tokens, self.batch_size)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured: fields of `bench.latency.Latency`."""
        return ("ttft", "tpot") if self.new_tokens else ("latency",)
