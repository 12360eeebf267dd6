"""Speed of matrix products on this processor by dtype."""

import time

import torch

from lonas_edge.formats import DTYPES

WORTH_A_HINT = 1.5  # times as fast
QUICK = 512  # rows and columns; 0.5 s where bf16 is emulated (AVX2)


def matrix_speed(dtype: str, size: int) -> float:
    """Speed of a square matrix product in FLOP/s, best of three; `dtype` is a key of `DTYPES`."""
    left, right = (torch.ones(size, size, dtype=DTYPES[dtype].torch) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def quicker_in(computed: str, option: str) -> str | None:
    """Return a hint, with the `option` to change, for a processor that is much faster in the other dtype; otherwise None."""
    other = "fp32" if computed == "bf16" else "bf16"
    times = matrix_speed(other, QUICK) / matrix_speed(computed, QUICK)
    if times < WORTH_A_HINT:
        return None
    return f"computed in {computed}; this processor multiplies matrices {times:.1f} times as fast in {other} ({option} {other})"
