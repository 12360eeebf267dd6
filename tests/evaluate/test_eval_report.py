"""The record of an evaluation, and its Markdown and CSV."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lonas_edge.evaluate.compare import Difference
from lonas_edge.evaluate.report import EvalRecord, markdown
from lonas_edge.evaluate.results import Conditions, Metric, SkippedSample, TargetResult, TaskResult, averaged
from lonas_edge.space.subnetwork import Sizes


def result(metric: str, value: float, stderr: float | None, task: str = "boolq", **others: Any) -> TaskResult:
    others = {"questions": 6, "skipped": (), "harness": False, **others}
    return TaskResult.of(task, metric, {metric: Metric(value, stderr)}, **others)


def target(name: str, winogrande: float, **changes: Any) -> TargetResult:
    tasks = (
        result("acc", 0.5, 0.03),
        result("acc", winogrande, 0.04, "winogrande", skipped=(SkippedSample("winogrande", 7, 130, 128),)),
    )
    average, error = averaged(tasks)
    made = TargetResult(
        name=name,
        kind="ir",
        precision="int8",
        prompt="alpaca",
        sizes=Sizes(130_000, 129_000, 33_000_000, 256, {}),
        average=average,
        average_stderr=error,
        tasks=tasks,
        answered=12,
        seconds=1.0,
        identity={"device": "CPU", "batch_size": 64, "properties": {"KV_CACHE_PRECISION": "u8"}},
    )
    return replace(made, **changes)


IN_PYTORCH = {"device": "cpu", "batch_size": 64}
TARGETS = (target("ir", 0.6), target("base", 0.4, kind="torch", precision="fp32", sizes=None, identity=IN_PYTORCH))
DIFFERENCES = tuple(
    Difference("base", "ir", scope, points, half and points - half, half and points + half, 0.8, 12)
    for scope, points, half in (("boolq", 0.0, None), ("winogrande", -20.0, 39.2), ("average", -10.0, 19.6))
)
REPORT = EvalRecord("option-text", None, 0, TARGETS, DIFFERENCES, Conditions("CPU X", {"python": "3.11"}, "2026-11-25"))


def test_markdown():
    lines = markdown(REPORT).splitlines()
    assert "| ir (int8) | 0.000129B | 3.3e-05 | 50.0 ± 3.0 | 60.0 ± 4.0 | 55.0 ± 2.5 |" in lines
    assert "| base (fp32) | – | – | 50.0 ± 3.0 | 40.0 ± 4.0 | 45.0 ± 2.5 |" in lines
    assert any(line.startswith("| base, WinoG | -20.0 | -59.2 … +19.2 | 80.0% |") for line in lines)
    assert any(line.startswith("| base, BoolQ | +0.0 | – |") for line in lines)
    assert "- ir: OpenVINO on CPU; properties KV_CACHE_PRECISION=u8; batches of 64 prompts" in lines
    assert sum("winogrande sample 7: 130 tokens" in line for line in lines) == 2
    own = replace(TARGETS[0], tasks=(result("acc_norm", 0.5, 0.1, "arc_easy", harness=True),))
    assert "arc_easy: acc_norm, as lm-evaluation-harness defines it" in markdown(replace(REPORT, targets=(own,)))


def test_the_record_is_read_as_it_was_written():
    infinite = replace(TARGETS[0], tasks=(result("perplexity", float("inf"), None),))
    for report in (REPORT, replace(REPORT, targets=(infinite,))):
        assert EvalRecord.from_json(json.loads(json.dumps(report.to_json())), "eval.json") == report


def test_the_average_of_tasks():
    three, four = result("acc", 0.4, 0.03), result("acc_norm", 0.6, 0.04)
    assert averaged([three, four]) == (pytest.approx(50.0), pytest.approx(2.5))  # sqrt(3² + 4²) / 2
    assert averaged([three, result("ppl", 9.0, 1.0)]) == (pytest.approx(40.0), pytest.approx(3.0))
    assert averaged([three, result("acc", 0.6, None)]) == (pytest.approx(50.0), None)
    assert averaged([result("ppl", 9.0, 1.0)]) == (None, None)
