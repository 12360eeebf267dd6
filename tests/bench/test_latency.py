"""`measure_latency` and `ir_latencies` with fake processes: starts, groups, failures, facts; memory estimates."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_variants import FACTS, SMOLLM2, Fakes

from lonas_edge.bench import latency
from lonas_edge.bench.latency import Plan, ir_latencies, measure_latency
from lonas_edge.bench.measure import PromptSource, Schedule
from lonas_edge.bench.variants import Case, Placement, Variant
from lonas_edge.bench.worker import VariantFailedError
from lonas_edge.errors import LonasEdgeError

CASE, PASS = Case(8, 3), Case(8, 0)
NAMES = ["subnet", "lora", "unpruned"]


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    return [Variant(name, "ir", tmp_path, bytes_estimate=5 * 10**9) for name in NAMES]


def plan(schedule: Schedule, *cases: Case) -> Plan:
    return Plan(cases or (CASE,), schedule, Placement((0,), 1), PromptSource(100, 0))


def free(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    monkeypatch.setattr(latency.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_rounds_are_spread_over_starts(variants: list[Variant], fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 30e9)
    steps: list[str] = []
    asked = Plan(**{**vars(plan(Schedule(5, 2, 1))), "progress": lambda step, _done: steps.append(step)})
    result = measure_latency(variants, asked)
    assert [v.name for v in fakes.started] == NAMES * 2
    taken = sorted({(s.start, s.round) for s in result.samples})
    assert taken == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)] and len(result.samples) == 5 * 3
    assert all(len(fakes.prompts[name]) == 5 + 2 for name in NAMES)  # a warm-up at each start
    assert len(result.loads) == 2 and result.groups == [NAMES]
    assert {name: vars(facts) for name, facts in result.facts.items()} == {
        name: {"load_seconds": 1.5, "parameters": None, **FACTS} for name in NAMES
    }
    assert "start 2 of 2, loading lora" in steps


def test_pairs_have_rounds_of_their_own(variants: list[Variant], fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 12e9)
    result = measure_latency(variants, plan(Schedule(2, 1, 0)))
    assert result.groups == [["subnet", "lora"], ["subnet", "unpruned"]]
    rounds = {name: [s.round for s in result.samples if s.variant == name] for name in NAMES}
    assert rounds == {"subnet": [0, 1, 2, 3], "lora": [0, 1], "unpruned": [2, 3]}


def test_a_variant_that_cannot_be_loaded_is_not_tried_again(
    variants: list[Variant], fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 30e9)
    fakes.fails["lora", "load"] = VariantFailedError("damaged")
    result = measure_latency(variants, plan(Schedule(2, 2, 0)))
    assert result.failures == {("lora", CASE): "lora: damaged"} and set(result.facts) == {"subnet", "unpruned"}
    assert [v.name for v in fakes.started] == [*NAMES, "subnet", "unpruned"]


@pytest.mark.parametrize("moment", ["load", 4])
def test_ctrl_c_ends_all_starts(
    variants: list[Variant], fakes: Fakes, monkeypatch: pytest.MonkeyPatch, moment: str | int
) -> None:
    free(monkeypatch, 30e9)
    fakes.fails["unpruned", moment] = KeyboardInterrupt()
    result = measure_latency(variants, plan(Schedule(8, 4, 0)))
    assert result.interrupted and {s.start for s in result.samples} == (set() if moment == "load" else {0, 1})


def test_medians_of_irs(fakes: Fakes, int8: Path) -> None:
    """The same directory three times; a classifier's case gives the latency of a pass."""
    tpots = {"1": 0.3, "2": 0.7, "3": 2.0}
    fakes.times = lambda variant: (2 * tpots[variant.name[0]], tpots[variant.name[0]])
    irs = [(int8, {"A": str(number)}) for number in range(3)]
    latencies = ir_latencies(irs, CASE, Schedule(3, 1, 0))
    noise = 1.002  # of the second of three rounds
    assert latencies == [{"ttft": pytest.approx(2 * t * noise), "tpot": pytest.approx(t * noise)} for t in tpots.values()]
    assert [variant.properties for variant in fakes.started] == [{"A": "0"}, {"A": "1"}, {"A": "2"}]
    fakes.prompts.clear()
    latencies = ir_latencies(irs, PASS, Schedule(3, 1, 0))
    assert latencies == [{"latency": pytest.approx(2 * t * noise)} for t in tpots.values()]
    assert {variant.kind for variant in fakes.started[3:]} == {"ir-classifier"}
    assert [len(batch) for batch in fakes.prompts["1: minimal-int8"]] == [1] * 3


def test_irs_that_cannot_be_measured(fakes: Fakes, int8: Path) -> None:
    fakes.fails["2: minimal-int8", "load"] = VariantFailedError("nonsense")
    with pytest.raises(LonasEdgeError, match=r"(?s)Cannot measure these IRs.*2: minimal-int8: nonsense"):
        ir_latencies([(int8, {}), (int8, {})], CASE, Schedule(2, 1, 0))
    fakes.prompts.clear()
    fakes.fails = {("1: minimal-int8", 2): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        ir_latencies([(int8, {})], CASE, Schedule(3, 1, 0))
