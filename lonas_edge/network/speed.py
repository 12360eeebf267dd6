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


def quicker_in(computed: str, option: str) -> str | None:
    """What to say to someone whose processor is much faster in the other dtype.

    It has units for bf16 (AMX) and computes in fp32; or it computes in bf16 and has none, or slow ones (AVX-512 BF16).

    Args:
        computed: fp32 or bf16, what is computed in.
        option: The option that asks for a dtype, without its value.

    Returns:
        A line; None where there is little to gain.
    """
    other = "fp32" if computed == "bf16" else "bf16"
    times = matrix_speed(other, QUICK) / matrix_speed(computed, QUICK)
    if times < WORTH_SAYING:
        return None
    return f"computed in {computed}; this processor multiplies matrices {times:.1f} times as fast in {other} ({option} {other})"
