"""Speed of matrix products on this processor by dtype."""

import time

import torch

from lonas_edge.formats import DTYPES

MUCH = 1.5  # times as fast
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


def faster_dtype() -> str:
    """Return bf16 where this processor multiplies it much faster than fp32, else fp32; takes 0.1 s."""
    return "bf16" if matrix_speed("bf16", QUICK) > MUCH * matrix_speed("fp32", QUICK) else "fp32"
