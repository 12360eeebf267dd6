"""The record of an evaluation and what people read of it; `eval_version_1.*` were written before there were typed records."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.record import Report
from lonas_edge.evaluate.report import for_card, markdown, to_csv
from lonas_edge.exporting.evaluations import Metric, TaskResult, averaged

FOLDER = Path(__file__).parent


def old() -> dict[str, Any]:
    return json.loads((FOLDER / "eval_version_1.json").read_text())


def read(content: dict[str, Any]) -> Report:
    return Report.from_json(content, "eval.json")


def test_a_record_of_version_1_is_read_and_shown_as_before():
    found = Report.read(FOLDER / "eval_version_1.json")
    assert markdown(found) == (FOLDER / "eval_version_1.md").read_text()
    assert found.targets[0].tasks[1].metrics["acc_norm"] == Metric(0.6, 0.24494897427831783)
    assert found.targets[1].sizes.macs == old()["targets"][1]["sizes"]["macs"]


def test_which_tasks_of_version_1_were_the_harness_s_own():
    content = old()
    for target in content["targets"]:
        target["tasks"][1]["task"] = "arc_easy"
    found = read(content)
    assert [task.harness for task in found.targets[0].tasks] == [False, True]
    assert "arc_easy: acc_norm, as lm-evaluation-harness defines it" in markdown(found)


def test_sizes_that_version_1_did_not_know():
    content = old()
    content["targets"][1]["sizes"] = {}
    found = read(content)
    assert found.targets[1].sizes is None
    assert "| base-llama (fp32) | – | – | 66.7 ± 21.1 |" in markdown(found)
    assert list(csv.DictReader(io.StringIO(to_csv(found))))[-1]["macs"] == ""


def test_a_record_comes_back_as_it_was():
    found = read(old())
    content = found.to_json()
    assert content["schema"] == "lonas-edge/eval/2"
    assert read(json.loads(json.dumps(content))) == found
    # what version 1 had stands where it stood
    for was, now in zip(old()["targets"], content["targets"], strict=True):
        assert {**now, "tasks": None} == {**was, "tasks": None}
        for task, kept in zip(was["tasks"], json.loads(json.dumps(now["tasks"])), strict=True):
            assert kept == {**task, "harness": False}
    for key in ("protocol", "num_beams", "limit", "seed", "differences", "conditions"):
        assert json.loads(json.dumps(content[key])) == old()[key]


def test_figures_without_a_finite_value_come_back():
    content = old()
    content["targets"][0]["tasks"][0]["metrics"]["perplexity"] = {"value": float("inf"), "stderr": None}
    found = read(json.loads(json.dumps(content)))
    assert found.targets[0].tasks[0].metrics["perplexity"].value == float("inf")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": "lonas-edge/eval/3"}, ["written by a newer lonas-edge", "Update lonas-edge"]),
        ({"schema": "lonas-edge/bench/1"}, ["expected schema lonas-edge/eval/2", "Run `lonas-edge eval` again"]),
        ({"targets": [{"tasks": 3}]}, ["damaged", "Run `lonas-edge eval` again"]),
        ({"limit": "many", "seed": None}, ["limit: ", "seed: "]),
        ({"more": 1}, ["more: "]),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(change: dict[str, Any], told: list[str]):
    with pytest.raises(LonasEdgeError) as error:
        read(old() | change)
    for part in ("eval.json", *told):
        assert part in str(error.value)


def test_one_row_for_each_target_task_and_metric():
    rows = list(csv.DictReader(io.StringIO(to_csv(read(old())))))
    assert {(row["target"], row["task"], row["metric"]) for row in rows} == {
        (target, task, metric)
        for target in ("ir", "base-llama")
        for task in ("boolq", "winogrande")
        for metric in ("acc", "acc_norm")
    } | {(target, "average", "accuracy") for target in ("ir", "base-llama")}
    average = rows[4]
    assert (average["target"], float(average["value"]), average["questions"]) == ("ir", pytest.approx(0.6333333), "11")
    assert float(average["stderr"]) == pytest.approx(0.1615893)


def test_a_card_s_evaluation_describes_its_own_target_alone():
    content = old() | {"protocol": "answer-word", "limit": 5, "seed": 3}
    content["targets"][1]["prompt"] = "question"
    found = read(content)
    kept = for_card(found, found.targets[1])
    expected = 'answer-word: ranks "the correct answer is WORD"; prompt question; 5 samples of each task, seed 3'
    assert (kept.described, kept.target.name) == (expected, "base-llama")


def result(metric: str, value: float, stderr: float | None) -> TaskResult:
    return TaskResult.of("t", metric, {metric: Metric(value, stderr)}, questions=1, left_out=(), harness=True)


def test_accuracies_are_percent_and_other_metrics_as_they_are():
    assert (result("acc", 0.25, 0.1).accuracy, result("acc", 0.25, 0.1).accuracy_stderr) == (25.0, 10.0)
    assert (result("ppl", 7.5, 0.5).accuracy, result("ppl", 7.5, 0.5).accuracy_stderr) == (7.5, 0.5)
    assert result("exact_match", 0.5, None).accuracy_stderr is None


def test_the_average_of_tasks_by_hand():
    three, four = result("acc", 0.4, 0.03), result("acc_norm", 0.6, 0.04)
    assert averaged([three, four]) == (pytest.approx(50.0), pytest.approx(2.5))  # sqrt(3² + 4²) / 2
    assert averaged([three, result("ppl", 9.0, 1.0)]) == (pytest.approx(40.0), pytest.approx(3.0))
    assert averaged([three, result("acc", 0.6, None)]) == (pytest.approx(50.0), None)
    assert averaged([result("ppl", 9.0, 1.0)]) == (None, None)
