"""What is said of a processor's units for bf16."""

from collections.abc import Callable

import pytest

from lonas_edge.network import speed

matrix_speed = speed.matrix_speed  # tests have another


def test_said_where_bf16_is_much_faster(processor: Callable) -> None:
    processor(1e11, 6.3e11)
    assert speed.quicker_in_bf16("--torch-dtype bf16") == (
        "computed in fp32; this processor multiplies matrices 6.3 times as fast in bf16 (--torch-dtype bf16)"
    )


@pytest.mark.parametrize("bf16", [2e10, 1e11, 1.4e11])
def test_nothing_is_said_where_it_is_not(processor: Callable, bf16: float) -> None:
    processor(1e11, bf16)
    assert speed.quicker_in_bf16("--precision bf16") is None


def test_a_speed_is_in_operations_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # products of 4, 2 and 3 seconds
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert matrix_speed("fp32", 64) == 2 * 64**3 / 2.0  # 64 x 64 times 64 x 64: as many multiplications and additions
