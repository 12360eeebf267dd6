"""Record the times of one generation, with an injected clock. No heavy imports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Timing:
    """One generation of a fixed number of tokens, or one pass of a classifier. Seconds from the start.

    Attributes:
        token_times: Time of each new token (those of a batch come together); empty for a classifier.
        end_to_end: Time of the end.
    """

    token_times: tuple[float, ...]
    end_to_end: float

    @property
    def ttft(self) -> float:
        """Time to first token in seconds."""
        return self.token_times[0]

    @property
    def tpot(self) -> float:
        """Time per output token in seconds: the mean interval between tokens after the first."""
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)


def generate_greedy(prefill: Callable[[], Any], decode: Callable[[Any], Any], new_tokens: int, clock: Clock) -> Timing:
    """Generate a fixed number of tokens, and record the time of each.

    `prefill` computes the prompt and returns the first new token (of each sequence of the batch); `decode` takes the last token
    and returns the next.
    """
    start = clock()
    token = prefill()
    times = [clock() - start]
    while len(times) < new_tokens:
        token = decode(token)
        times.append(clock() - start)
    return Timing(tuple(times), clock() - start)


def from_genai(first: float, new_token_times: Sequence[float], end_to_end: float) -> Timing:
    """Convert openvino_genai's `RawPerfMetrics`.

    Args:
        first: `m_times_to_first_token[0]`, microseconds.
        new_token_times: `m_new_token_times`, milliseconds on a steady clock, one per step.
        end_to_end: Seconds.
    """
    start = new_token_times[0]
    return Timing(tuple(first / 1e6 + (time - start) / 1e3 for time in new_token_times), end_to_end)
