"""Hints at a processor's faster dtype."""

from collections.abc import Callable

import pytest

from lonas_edge.network import speed

matrix_speed = speed.matrix_speed  # tests have another


@pytest.mark.parametrize(
    ("computed", "bf16", "hint"),
    [
        ("fp32", 6.3e11, "computed in fp32; this processor multiplies matrices 6.3 times as fast in bf16 (--precision bf16)"),
        ("bf16", 0.5e11, "computed in bf16; this processor multiplies matrices 2.0 times as fast in fp32 (--precision fp32)"),
        ("fp32", 1.4e11, None),
        ("bf16", 0.7e11, None),
    ],
)
def test_hint(processor: Callable, computed: str, bf16: float, hint: str | None) -> None:
    processor(1e11, bf16)
    assert speed.quicker_in(computed, "--precision") == hint


def test_operations_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # products of 4, 2 and 3 seconds
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert matrix_speed("fp32", 64) == 2 * 64**3 / 2.0
