"""Counted costs against formulas, and the times that a model has."""

import pytest
from tiny_models import HIDDEN, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION
from lonas_edge.families.kinds import ModelKind
from lonas_edge.search.cost import check_cost, counted_cost, default_cost


def test_counted_costs(llama: TinySource) -> None:
    """64 channels fewer in three matrices with adapters of rank 8; INT8 has a byte per weight and three per row."""
    opened = llama.opened()
    maximal = [values[0] for values in llama.groups()]
    narrowed = list(maximal)
    narrowed[maximal.index(128)] = 64

    def saved(name: str, weight_format: str = "int8") -> float:
        cost = counted_cost(name, opened, weight_format)
        return cost(maximal) - cost(narrowed)

    weights = 64 * (3 * HIDDEN + 3 * 8)
    assert saved("weights") == weights
    assert saved("macs") == weights * (opened.space.sequence_length or 256)
    assert saved("bytes", "fp16") == 2 * 64 * 3 * HIDDEN
    assert saved("bytes", "int8") == 64 * 3 * HIDDEN + 2 * 64 * 3  # rows of gate and up have a scale and a zero point


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("latency", CAUSAL_LM, "a causal language model generates tokens; use --cost tpot or --cost ttft"),
        ("tpot", CLASSIFICATION, "a sequence classifier generates no tokens; use --cost latency"),
    ],
)
def test_times_that_a_model_does_not_have(name: str, kind: ModelKind, message: str) -> None:
    with pytest.raises(LonasEdgeError, match=f"--cost {name}: {message}"):
        check_cost(name, kind)
    other = CLASSIFICATION if kind == CAUSAL_LM else CAUSAL_LM
    for fitting in (name, default_cost(other), "macs", "bytes"):
        check_cost(fitting, other)
