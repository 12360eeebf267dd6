"""TTFT, TPOT and end to end with an injected clock, and from openvino_genai's raw metrics."""

import pytest

from lonas_edge.bench.timing import from_genai, generate_greedy


class Clock:
    """A clock that `sleep` advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_greedy_generation_records_known_durations() -> None:
    clock, durations = Clock(), iter([0.010, 0.020, 0.030])
    seen: list[int] = []

    def prefill() -> int:
        clock.sleep(0.5)
        return 1

    def decode(token: int) -> int:
        seen.append(token)
        clock.sleep(next(durations))
        return token + 1

    timing = generate_greedy(prefill, decode, 4, clock)
    assert seen == [1, 2, 3]  # each token is the input of the next step
    assert timing.token_times == pytest.approx((0.5, 0.51, 0.53, 0.56))
    assert timing.ttft == pytest.approx(0.5)
    assert timing.tpot == pytest.approx(0.02)  # the mean of the three
    assert timing.end_to_end == pytest.approx(0.56)


def test_units_of_openvino_genai() -> None:
    """m_times_to_first_token is in microseconds, m_new_token_times in milliseconds on another clock."""
    timing = from_genai(250_000.0, [9_000.0, 9_010.0, 9_030.0], 0.3)
    assert timing.ttft == pytest.approx(0.25)
    assert timing.tpot == pytest.approx(0.015)
    assert timing.token_times == pytest.approx((0.25, 0.26, 0.28))
