"""Latency of arms side by side: which are loaded together, what a pair's sessions give, and IRs for real."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lonas_edge.bench import latency as module
from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.latency import Latency, ir_latencies, measure_latency, together
from lonas_edge.bench.measure import Measured, PromptSource, Sample, Schedule
from lonas_edge.bench.session import Plan, Session
from lonas_edge.bench.timing import Timing
from lonas_edge.bench.worker import Placement
from lonas_edge.errors import LonasEdgeError

CASE, PASS = Case(8, 3), Case(8, 0, 4)
PLAN = Plan({}, [CASE], Schedule(2), 1, Placement((0,), 1), PromptSource(100, 0))
ARMS = [Arm(name, "ir", Path(), bytes_estimate=5 * 10**9) for name in ("subnet", "lora", "unpruned")]
TPOTS = {"subnet": (0.1, 0.3, 0.4), "lora": (0.5, 0.7, 0.6), "unpruned": (1.0, 3.0, 2.0)}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Sessions of made-up latencies, the first token after two of them; the groups that were measured."""
    groups: list[list[str]] = []

    def run_session(group: Sequence[Arm], plan: Plan) -> Session:
        names = [arm.name for arm in group]
        groups.append(names)
        samples = []
        for name in names:
            for number, each in enumerate(TPOTS[name.split()[-1]]):
                samples.append(Sample(name, CASE, number, Timing((2 * each, 3 * each, 4 * each), 4 * each)))
                samples.append(Sample(name, PASS, number, Timing((), 5 * each)))
        return Session(names, Measured(samples, interrupted=plan.starts == len(groups) + 1))

    monkeypatch.setattr(module, "run_session", run_session)
    return groups


def free(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_arms_that_do_not_fit_together_are_paired() -> None:
    assert [[a.name for a in group] for group in together(ARMS, 30 * 10**9)] == [["subnet", "lora", "unpruned"]]
    assert [[a.name for a in group] for group in together(ARMS, 12 * 10**9)] == [["subnet", "lora"], ["subnet", "unpruned"]]


def test_every_group_is_measured_until_ctrl_c(monkeypatch: pytest.MonkeyPatch, made_up: list[list[str]]) -> None:
    free(monkeypatch, 12 * 10**9)
    assert [session.arms for session in measure_latency(ARMS, PLAN)] == made_up == [["subnet", "lora"], ["subnet", "unpruned"]]
    made_up.clear()
    ended = measure_latency(ARMS, Plan(**{**vars(PLAN), "starts": 2}))  # the first is interrupted
    assert len(ended) == len(made_up) == 1 and ended[-1].measured.interrupted


def test_medians_by_hand(monkeypatch: pytest.MonkeyPatch, made_up: list[list[str]], int8: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in TPOTS]
    for folder in folders:
        folder.symlink_to(int8)
    found = ir_latencies([(folder, {}) for folder in folders], CASE, Schedule(3), starts=1)
    assert found == [Latency(pytest.approx(2 * t), pytest.approx(t)) for t in (0.3, 0.6, 2.0)]  # type: ignore[arg-type]
    assert len(made_up) == 1  # all in one run
    found = ir_latencies([(folder, {}) for folder in folders], PASS, Schedule(3), starts=1)
    assert found == [Latency(latency=pytest.approx(5 * t)) for t in (0.3, 0.6, 2.0)]  # type: ignore[arg-type]
    made_up.clear()
    with pytest.raises(KeyboardInterrupt):
        ir_latencies([(folders[0], {})], CASE, Schedule(3), starts=2)


def test_irs_for_real(int8: Path) -> None:
    """The same directory twice, with properties of its own each."""
    irs = [(int8, {"KV_CACHE_PRECISION": "u8"}), (int8, {"KV_CACHE_PRECISION": "f16"})]
    found = ir_latencies(irs, Case(8, 4), Schedule(rounds=2, warmup=1), threads=1)
    assert len(found) == 2 and all(one.ttft > 0 and one.tpot > 0 for one in found)
    with pytest.raises(LonasEdgeError, match=r"(?s)cannot be measured.*2: minimal-int8: .*nonsense"):
        ir_latencies([irs[0], (int8, {"KV_CACHE_PRECISION": "nonsense"})], Case(8, 4), Schedule(2, 0), threads=1)
