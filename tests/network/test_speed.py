"""The dtype in which a processor multiplies matrices faster."""

from collections.abc import Callable

import pytest

from lonas_edge.network import speed

matrix_speed = speed.matrix_speed  # tests have another


@pytest.mark.parametrize(("bf16", "dtype"), [(6.3e11, "bf16"), (1.4e11, "fp32"), (0.5e11, "fp32")])
def test_faster_dtype(processor: Callable, bf16: float, dtype: str) -> None:
    processor(1e11, bf16)
    assert speed.faster_dtype() == dtype


def test_operations_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # products of 4, 2 and 3 seconds
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert matrix_speed("fp32", 64) == 2 * 64**3 / 2.0
