"""The evaluations that `eval --card` keeps with an exported directory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.evaluations import FILE, Conditions, Evaluation, Evaluations, Metric, TargetResult, TaskResult

TASK = TaskResult.of("boolq", "acc", {"acc": Metric(0.5, 0.1)}, questions=6, left_out=(), harness=False)
TARGET = TargetResult("ir", "ir", "int8", "alpaca", None, 50.0, 10.0, (TASK,), 6, 1.0, {"properties": {"A": "B"}})
EVALUATION = Evaluation("option-text", None, None, 0, TARGET, Conditions("CPU X", {}, "2026-11-25"))


def test_one_evaluation_is_kept_for_each_protocol(tmp_path: Path):
    assert Evaluations.of(tmp_path) == Evaluations()
    again = replace(EVALUATION, seed=1)
    kept = Evaluations().with_one("generate", EVALUATION).with_one("option-text", EVALUATION).with_one("generate", again)
    kept.write(tmp_path / FILE)
    assert Evaluations.of(tmp_path).by_protocol == {"generate": again, "option-text": EVALUATION}
    assert Evaluations.of(tmp_path).by_protocol["generate"].target.properties == {"A": "B"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema": "lonas-edge/evaluations/2", "by_protocol": {}}, "written by a newer lonas-edge"),
        ({"schema": "lonas-edge/evaluations/1", "by_protocol": {"generate": {}}}, "by_protocol.generate.target"),
    ],
)
def test_a_damaged_file_is_refused(content: object, message: str, tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError, match=FILE) as error:
        Evaluations.of(tmp_path)
    assert message in str(error.value)
