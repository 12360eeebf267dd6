"""What one generation took, and a greedy generation loop with its clock passed in. No heavy imports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lonas_edge.ir import END_TO_END

Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Speculated:
    """What speculative decoding did in one generation.

    Attributes:
        steps: Tokens that each pass of the main model gave; the first pass is the prompt's, which has no draft.
        drafted: Tokens that the draft proposed, as openvino_genai counts them: those of the last pass not included.
        accepted: How many of those the main model took.
        main_seconds: Mean time of a pass of the main model behind the prompt's.
        draft_seconds: Mean time of a pass of the draft behind the prompt's, which gives one token.
    """

    steps: tuple[int, ...]
    drafted: int
    accepted: int
    main_seconds: float
    draft_seconds: float


@dataclass(frozen=True)
class Timing:
    """One generation of a fixed number of tokens, or one pass. Seconds since the prompt was handed over.

    Attributes:
        token_times: When each new token was there (those of a batch come together); none of a pass.
        end_to_end: When all was done.
        answers: Ids that were generated after each prompt, of an IR.
        speculated: What a draft did, where there was one.
    """

    token_times: tuple[float, ...]
    end_to_end: float
    answers: tuple[tuple[int, ...], ...] = ()
    speculated: Speculated | None = None

    @property
    def ttft(self) -> float:
        """Time to first token, seconds: the prompt's pass and the choice of the first token."""
        return self.token_times[0]

    @property
    def tpot(self) -> float:
        """Time per output token, seconds: mean interval between tokens after the first."""
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)


# What can be asked to be small, by name: seconds.
OBJECTIVES: dict[str, Callable[[Timing], float]] = {
    "tpot": lambda timing: timing.tpot,
    "ttft": lambda timing: timing.ttft,
    END_TO_END: lambda timing: timing.end_to_end,
}


def generate_greedy(
    prefill: Callable[[], Any], decode: Callable[[Any], Any], new_tokens: int, clock: Clock
) -> tuple[list[Any], Timing]:
    """Generate a fixed number of tokens, whatever they are.

    Args:
        prefill: Computes the prompt and returns the first new token (of each sequence of the batch).
        decode: Takes the last token and returns the next.
        new_tokens: How many to generate.
        clock: The time in seconds.

    Returns:
        The tokens, and when each was there.
    """
    start = clock()
    tokens = [prefill()]
    times = [clock() - start]
    while len(tokens) < new_tokens:
        tokens.append(decode(tokens[-1]))
        times.append(clock() - start)
    return tokens, Timing(tuple(times), clock() - start)


def from_genai(first: float, new_token_times: Sequence[float], end_to_end: float) -> Timing:
    """Timing from openvino_genai's `RawPerfMetrics`.

    Args:
        first: `m_times_to_first_token[0]`, microseconds.
        new_token_times: `m_new_token_times`, milliseconds on a steady clock, one entry a step.
        end_to_end: Seconds.

    Returns:
        The timing.
    """
    start = new_token_times[0]
    return Timing(tuple(first / 1e6 + (time - start) / 1e3 for time in new_token_times), end_to_end)
