"""The plan: searched groups, settings and the warm start."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import LAYERS, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.search.cost import CostSettings, counted_cost
from lonas_edge.search.dimensions import find_dimensions
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.plan import make_plan
from lonas_edge.search.proposals import warm_start


def test_lengths_beyond_the_context(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """Of 128 tokens. Refused before the search where the cost is a latency; unused for other costs."""
    lengths = CostSettings(prompt_len=120, new_tokens=9)
    options = SearchOptions(data, tmp_path / "out", num_samples=8, template="alpaca", cost="macs", cost_settings=lengths)
    assert not make_plan(llama.opened(), options).timed
    message = "--prompt-len 120 and 9 generated tokens: 129 tokens are beyond the model's context of 128"
    with pytest.raises(LonasEdgeError, match=message):
        make_plan(llama.opened(), replace(options, cost="tpot"))


def test_ranks_are_not_searched(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source)
    assert dimensions.searched == (3, 4, 5) and dimensions.size == 3**LAYERS
    minimal = dimensions.named()["minimal"]
    assert minimal == (8, 8, 8, 64, 64, 64, 8, 8, 8), "ranks at their widest"
    assert dimensions.levels(minimal) == [2, 2, 2] and dimensions.widths([2, 2, 2]) == minimal


def test_warm_start(llama: TinySource) -> None:
    source = llama.opened()
    dimensions = find_dimensions(source)
    cost = counted_cost("bytes", source, "int8_sym")
    table = ((), (), (), (0.0, 0.01, 0.02), (0.0, 1.0, 2.0), (0.0, 0.1, 0.2), (), (), ())
    origins = warm_start(dimensions, 100, table, cost, {})
    assert list(origins.values())[:3] == [f"warm-start:{name}" for name in ("maximal", "heuristic", "minimal")]
    rungs = [widths for widths, origin in origins.items() if origin.startswith("warm-start:knapsack")]
    assert (8, 8, 8, 64, 128, 128, 8, 8, 8) in rungs, "the least sensitive group is narrowed first"
    assert (8, 8, 8, 64, 128, 64, 8, 8, 8) in rungs
    assert not any(widths[4] < 128 and widths[3] > 64 for widths in rungs)
    assert len(warm_start(dimensions, 4, table, cost, {})) <= 5
