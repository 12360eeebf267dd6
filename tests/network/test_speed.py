"""What is said of a processor's units for bf16."""

from collections.abc import Callable

import pytest

from lonas_edge.network import speed

matrix_speed = speed.matrix_speed  # tests have another


@pytest.mark.parametrize(
    ("computed", "fp32", "bf16", "times", "other"),
    [("fp32", 1e11, 6.3e11, "6.3", "bf16"), ("bf16", 1.5e11, 0.8e11, "1.9", "fp32")],
)
def test_said_where_the_other_is_much_faster(
    processor: Callable, computed: str, fp32: float, bf16: float, times: str, other: str
) -> None:
    processor(fp32, bf16)
    assert speed.quicker_in(computed, "--precision") == (
        f"computed in {computed}; this processor multiplies matrices {times} times as fast in {other} (--precision {other})"
    )


@pytest.mark.parametrize(
    ("computed", "bf16"), [("fp32", 2e10), ("fp32", 1e11), ("fp32", 1.4e11), ("bf16", 6e11), ("bf16", 1e11), ("bf16", 0.7e11)]
)
def test_nothing_is_said_where_it_is_not(processor: Callable, computed: str, bf16: float) -> None:
    processor(1e11, bf16)
    assert speed.quicker_in(computed, "--precision") is None


def test_a_speed_is_in_operations_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # products of 4, 2 and 3 seconds
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert matrix_speed("fp32", 64) == 2 * 64**3 / 2.0  # 64 x 64 times 64 x 64: as many multiplications and additions
