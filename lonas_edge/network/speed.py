"""What this processor computes at: the speed of its matrix products by dtype, and whether another dtype is worth naming."""

import time

import torch

from lonas_edge.formats import DTYPES

WORTH_SAYING = 1.5  # times as fast


def matrix_speed(dtype: str) -> float:
    """Floating-point operations a second of a matrix product, the best of three.

    Args:
        dtype: A key of `DTYPES`.

    Returns:
        The speed, in FLOP/s.
    """
    size = 1024
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
    times = matrix_speed("bf16") / matrix_speed("fp32")
    if times < WORTH_SAYING:
        return None
    return f"computed in fp32; this processor multiplies matrices {times:.1f} times as fast in bf16 ({option})"
