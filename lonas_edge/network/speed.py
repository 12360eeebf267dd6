"""What this processor computes at: the speed of its matrix products by dtype, and whether another dtype is worth naming."""

import time

import torch

from lonas_edge.formats import DTYPES

WORTH_SAYING = 1.5  # times as fast
LARGE, QUICK = 1024, 512  # rows and columns; where bf16 is emulated (AVX2), three of the large take 8 s, of the others 0.5


def matrix_speed(dtype: str, size: int = LARGE) -> float:
    """Floating-point operations a second of a matrix product, the best of three.

    Args:
        dtype: A key of `DTYPES`.
        size: Rows and columns of both matrices.

    Returns:
        The speed, in FLOP/s.
    """
    left, right = (torch.ones(size, size, dtype=DTYPES[dtype].torch) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def quicker_in_bf16(option: str) -> str | None:
    """What to say to someone who computes in fp32 on a processor with units for bf16 (AMX, AVX-512 BF16).

    Args:
        option: The option that asks for it, with its value.

    Returns:
        A line; None where there is little to gain.
    """
    times = matrix_speed("bf16", QUICK) / matrix_speed("fp32", QUICK)
    if times < WORTH_SAYING:
        return None
    return f"computed in fp32; this processor multiplies matrices {times:.1f} times as fast in bf16 ({option})"
