"""Parts of an axis."""

import pytest
import torch

from lonas_edge.families.base import Linear
from lonas_edge.network.parts import outside, take

MATRIX = torch.arange(30.0).reshape(6, 5)


def test_one_range_is_a_view() -> None:
    found = take(MATRIX, ((1, 4),), ((2, 5),))
    assert torch.equal(found, MATRIX[1:4, 2:5])
    assert found.untyped_storage().data_ptr() == MATRIX.untyped_storage().data_ptr()
    assert take(MATRIX) is MATRIX


def test_several_ranges() -> None:
    assert torch.equal(take(MATRIX, ((0, 2), (4, 6)), ((1, 2), (3, 5))), MATRIX[[0, 1, 4, 5]][:, [1, 3, 4]])
    assert torch.equal(take(MATRIX[:, 0], ((0, 2), (4, 6)), ((1, 2),)), MATRIX[[0, 1, 4, 5], 0])


@pytest.mark.parametrize(
    ("ranges", "removed"),
    [
        (((0, 6),), ()),
        (((0, 4),), ((4, 6),)),
        (((0, 2), (3, 5)), ((2, 3), (5, 6))),
        (((1, 2),), ((0, 1), (2, 6))),
    ],
)
def test_outside(ranges: tuple, removed: tuple) -> None:
    assert outside(ranges, 6) == removed


def test_a_width_keeps_the_first_share_of_each_block() -> None:
    fused = Linear("qkv", 8 + 4 + 4, 6, blocks=(8, 4, 4))
    assert fused.rows(1, 4) == ((0, 2), (8, 9), (12, 13))
    assert fused.rows(4, 4) == ((0, 16),)
    assert Linear("down", 6, 8).columns(3, 4) == ((0, 6),)
    assert Linear("up", 8, 6).rows(5, 8) == ((0, 5),)
