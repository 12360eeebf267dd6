"""Costs: counted ones by hand, latency from a table, whoever measured it."""

import pytest
from tiny_models import HIDDEN, LAYERS, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION
from lonas_edge.families.tasks import Task
from lonas_edge.search import latency_table
from lonas_edge.search.cost import COSTS, check_cost, cost_function
from lonas_edge.search.latency_table import Curve, FormatTable, Identity, LatencyTable
from lonas_edge.search.timing_settings import CostSettings


def networks(source: TinySource) -> tuple[list[int], list[int]]:
    """Maximal, and its first layer's MLP narrowed from 128 to 64."""
    maximal = [values[0] for values in source.groups()]
    narrowed = list(maximal)
    narrowed[maximal.index(128)] = 64
    return maximal, narrowed


def test_counted_costs_by_hand(llama: TinySource) -> None:
    """64 channels less in three matrices with adapters of rank 8 on each; one byte a weight and three a row at INT8."""
    opened = llama.opened()
    maximal, narrowed = networks(llama)

    def saved(name: str, weight_format: str = "int8") -> float:
        cost = cost_function(name, opened, CostSettings())
        return cost(maximal, weight_format) - cost(narrowed, weight_format)

    weights = 64 * (3 * HIDDEN + 3 * 8)
    assert saved("weights") == weights
    assert saved("macs") == weights * (opened.space.sequence_length or 256)
    assert saved("bytes", "fp16") == 2 * 64 * 3 * HIDDEN
    assert saved("bytes", "int8") == 64 * 3 * HIDDEN + 2 * 64 * 3  # rows of gate and up have a scale and a zero point
    assert {type(cost_function(name, opened, CostSettings())(maximal, "int8")) for name in ("macs", "weights", "bytes")} == {
        float
    }


def test_latency_comes_from_the_table_that_is_given(llama: TinySource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of the study, which another machine measured: nothing is measured here."""
    monkeypatch.setattr(latency_table, "open_table", lambda *_: pytest.fail("measured"))
    curve = Curve((128, 96, 64), (30.0, 24.0, 21.0), (3.0, 2.7, 2.4))
    identity = Identity("0", "CPU", "another", "another", 2, 24, 2, 256, 64, {}, 2, 1, (), None)
    table = LatencyTable(identity, "2026-11-25", 1.0, 1, 1, {"int8": FormatTable({}, {"mlp.gate_proj, mlp.up_proj": curve})})
    maximal, narrowed = networks(llama)
    for metric, costs in (("ttft", (30.0, 30.0 - 9.0 / LAYERS)), ("tpot", (3.0, 3.0 - 0.6 / LAYERS))):
        cost = cost_function(metric, llama.opened(), CostSettings(), table=table)
        assert (cost(maximal, "int8"), cost(narrowed, "int8")) == pytest.approx(costs)
        with pytest.raises(LonasEdgeError, match="latency table of 2026-11-25 has no int4 networks"):
            cost(maximal, "int4")


def test_an_unknown_device_is_refused_before_anything_is_done(llama: TinySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_identity", lambda *_: pytest.fail("went on"))
    for name in COSTS:
        if COSTS[name].needs_device:
            with pytest.raises(LonasEdgeError, match=r"--device TPU: not on this machine\. Present: CPU"):
                cost_function(name, llama.opened(), CostSettings(device="TPU"))
        else:
            cost_function(name, llama.opened(), CostSettings(device="TPU"))


@pytest.mark.parametrize(
    ("name", "task", "told"),
    [
        ("latency", CAUSAL_LM, "a causal language model generates tokens; its times are --cost ttft and --cost tpot"),
        ("ttft", CLASSIFICATION, "a sequence classifier generates no tokens; its times are --cost latency"),
        ("tpot", CLASSIFICATION, "a sequence classifier generates no tokens; its times are --cost latency"),
    ],
)
def test_times_that_a_model_has_not(name: str, task: Task, told: str) -> None:
    with pytest.raises(LonasEdgeError, match=f"--cost {name}: {told}"):
        check_cost(name, task)
    other = CLASSIFICATION if task == CAUSAL_LM else CAUSAL_LM
    for fitting in (name, "macs", "bytes"):
        check_cost(fitting, other)
