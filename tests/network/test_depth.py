"""Removed blocks against the oracle: activated in a super-network, and materialized."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from structured import assert_as_defined, assert_generates_alike
from tiny_models import CASES, TinyModels, TinySource, families

from lonas_edge.network.super_network import load_super_network

Choose = Callable[[TinySource, str], list[int]]
UNTIED = [case for case in CASES if not case.endswith("-tied")]  # the head has no part in this
DEPTHS = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]  # groups of `removable_blocks`


def widths_of(source: TinySource, choose: Choose, depth: list[int], name: str = "unequal:3") -> list[int]:
    """Unequal widths with the blocks of `depth`."""
    return choose(source, name)[: -len(depth)] + depth


@pytest.mark.parametrize("case", families(*UNTIED))
def test_removed_blocks_answer_as_defined(
    case: str, tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, materialize: Callable[..., Path]
) -> None:
    tiny = tiny_models.deep_source(case)
    network = load_super_network(tiny.opened())
    for depth in DEPTHS:
        widths = widths_of(tiny, choose, depth)
        assert_as_defined(tiny, tiny.adapter, network, materialize(tiny, widths), widths, ids)


@pytest.mark.parametrize("case", families(*UNTIED))
def test_generates_as_without_a_cache(
    case: str, tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, materialize: Callable[..., Path]
) -> None:
    """Positions and masks come from the caches, whose first layer may be removed."""
    tiny = tiny_models.deep_source(case)
    network, widths = load_super_network(tiny.opened()), widths_of(tiny, choose, [0, 1, 0])
    tokens = assert_generates_alike(tiny.opened(), network, materialize, widths, ids)
    assert_as_defined(tiny, tiny.adapter, network, materialize(tiny, widths), widths, tokens)
