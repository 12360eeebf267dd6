"""The evaluations that `eval --card` keeps with an exported directory."""

import json
from pathlib import Path

from lonas_edge.exporting.evaluations import (
    FILE,
    Conditions,
    Evaluation,
    Evaluations,
    Metric,
    TargetResult,
    TaskResult,
    averaged,
)


def evaluation(accuracy: float) -> Evaluation:
    task = TaskResult.of("boolq", "acc", {"acc": Metric(accuracy, 0.01)}, questions=5, skipped=(), harness=False)
    target = TargetResult("out", "ir", "int8", "alpaca", None, *averaged([task]), (task,), 5, 1.0, {})
    return Evaluation("by option text", None, None, 0, target, Conditions("a CPU", {}, "2026-01-01"))


def test_the_latest_of_each_protocol_is_kept(tmp_path: Path) -> None:
    kept = Evaluations.of(tmp_path)
    assert kept == Evaluations()
    for protocol, accuracy in (("option-text", 0.5), ("generate", 0.25), ("option-text", 0.75)):
        Evaluations.of(tmp_path).with_evaluation(protocol, evaluation(accuracy)).write(tmp_path / FILE)
    assert json.loads((tmp_path / FILE).read_text())["schema"] == "lonas-edge/evaluations/1"
    kept = Evaluations.of(tmp_path)
    assert kept.by_protocol == {"option-text": evaluation(0.75), "generate": evaluation(0.25)}
    assert kept.by_protocol["option-text"].target.average == 75 and kept.by_protocol["generate"].target.average_stderr == 1
