"""What is passed for an NPU, as openvino_genai's pipeline asks for it. None is here: what it does with it was not run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino_genai
import pytest

from lonas_edge.bench import latency
from lonas_edge.bench.arms import Arm, Case, npu_lengths
from lonas_edge.bench.making import make_arms
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.runners import GenaiRunner
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported


def silent(_what: str, _done: float | None) -> None:
    pass


def test_the_lengths_are_those_of_the_longest_case() -> None:
    cases = [Case(256, 64), Case(2048, 2), Case(16, 100)]
    assert npu_lengths(cases) == {"MAX_PROMPT_LEN": "2048", "MIN_RESPONSE_LEN": "100"}


@pytest.mark.parametrize("device", ["NPU", "NPU.3720"])
def test_an_arm_has_them_and_whoever_asks_for_others_gets_those(int8: Path, device: str) -> None:
    asked = BenchOptions(arms=(), device=device, cases=(Case(32, 8), Case(48, 4)))
    opened = open_exported(int8)
    given = {"MAX_PROMPT_LEN": "4096", "GENERATE_HINT": "BEST_PERF"}
    [plain], [told] = (make_arms(opened, one, silent) for one in (asked, replace(asked, properties=given)))
    assert plain.properties == {"MAX_PROMPT_LEN": "48", "MIN_RESPONSE_LEN": "8"}
    assert told.properties == {**given, "MIN_RESPONSE_LEN": "8"}
    [other] = make_arms(opened, replace(asked, device="CPU"), silent)
    assert not other.properties.keys() & {"MAX_PROMPT_LEN", "MIN_RESPONSE_LEN"}


def test_a_batch_is_refused(int8: Path) -> None:
    asked = BenchOptions(arms=(), device="NPU", cases=(Case(32, 8), Case(32, 8, batch_size=2)))
    with pytest.raises(LonasEdgeError, match="--device NPU: an NPU answers one prompt at a time; leave --batch-size out"):
        make_arms(open_exported(int8), asked, silent)


def test_the_pipeline_gets_numbers_and_no_scheduler(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """openvino_genai's `pop_int_and_cast` refuses text; its static pipeline has neither scheduler nor prefix cache."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(openvino_genai, "LLMPipeline", lambda *found, **options: seen.append((*found, options)))
    properties = {"MAX_PROMPT_LEN": "48", "MIN_RESPONSE_LEN": "8", "GENERATE_HINT": "BEST_PERF"}
    runner = GenaiRunner(Arm("subnet", "ir", int8, "NPU", properties=properties), 2)
    expected = {"MAX_PROMPT_LEN": 48, "MIN_RESPONSE_LEN": 8, "GENERATE_HINT": "BEST_PERF", "PERFORMANCE_HINT": "LATENCY"}
    assert seen == [(int8, "NPU", expected)]
    assert runner.compiled() == {}, "OpenVINO alone would compile a model of dynamic shapes"


def test_searching_and_tuning_pass_them_too(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReachedError(Exception):
        pass

    def measured(arms: list[Arm], _plan: object) -> None:
        raise ReachedError([dict(arm.properties) for arm in arms])

    monkeypatch.setattr(latency, "measure_latency", measured)
    for device, lengths in (("NPU", {"MAX_PROMPT_LEN": "24", "MIN_RESPONSE_LEN": "4"}), ("CPU", {})):
        with pytest.raises(ReachedError) as caught:
            latency.ir_latencies([(int8, {"A": "B"})], Case(24, 4), Schedule(1, 0), device=device)
        assert caught.value.args[0] == [{"A": "B", **lengths}]


def test_a_machine_without_one_says_so(run_cli: Callable, int8: Path) -> None:
    ran = run_cli("bench", int8, "--device", "NPU", "--arms", "subnet")
    assert ran.code == 1 and "--device NPU: not on this machine. Present: CPU" in " ".join(ran.err.split())
