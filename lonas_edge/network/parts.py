"""Parts of a tensor: ranges of its rows and columns, as views wherever possible."""

import torch

from lonas_edge.families import Part


def take(tensor: torch.Tensor, rows: Part | None = None, columns: Part | None = None) -> torch.Tensor:
    """Take ranges of rows and columns (all when None) of a tensor [out, in] or [out]: a view, or a copy of several ranges."""
    if rows is not None:
        tensor = _taken(tensor, rows, 0)
    if columns is not None and tensor.dim() > 1:
        tensor = _taken(tensor, columns, 1)
    return tensor


def _taken(tensor: torch.Tensor, ranges: Part, axis: int) -> torch.Tensor:
    parts = [tensor.narrow(axis, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def outside(ranges: Part, size: int) -> Part:
    """The ranges of an axis of this size that a part does not have."""
    ends = [0, *(stop for _, stop in ranges)]
    starts = [*(start for start, _ in ranges), size]
    return tuple((end, start) for end, start in zip(ends, starts, strict=True) if end < start)


def shifted(ranges: Part) -> Part:
    """The same part of an axis that starts where the part does."""
    first = ranges[0][0]
    return tuple((start - first, stop - first) for start, stop in ranges)
