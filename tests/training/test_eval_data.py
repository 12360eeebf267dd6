"""Held-out data: their loss, by the oracle, too; how many were also trained on."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import oracle_logits
from tiny_models import TinySource
from training_runs import EXAMPLES, OPTIONS, Tokens, cross_entropy, write_data

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.elastic_trainer import ElasticTrainer
from lonas_edge.training.inputs import open_inputs, with_eval_data
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

TRAINED, HELD_OUT = EXAMPLES[:12], EXAMPLES[8:20]


@pytest.fixture
def run(llama: TinySource, tmp_path: Path) -> Callable[..., Any]:
    data, held_out = write_data(tmp_path / "data.json", TRAINED), write_data(tmp_path / "held_out.json", HELD_OUT)

    def train_it(output: Path, resume: bool = False, report: Callable[..., None] = lambda *_: None, **changes: Any) -> Any:
        inputs = with_eval_data(open_inputs(str(llama.base), data, llama.space), held_out)
        return train(inputs, output, TrainOptions(**{**OPTIONS, **changes}), resume, report=report)

    return train_it


def test_the_loss_of_held_out_examples(run: Callable[..., Any], llama: TinySource, tmp_path: Path, choose: Callable) -> None:
    record = run(tmp_path / "out")
    tokens, maximal = [Tokens.of(llama, example) for example in HELD_OUT], choose(llama, "maximal")
    expected = cross_entropy(tokens, lambda ids: oracle_logits(llama.base, tmp_path / "out", llama.space, maximal, ids))
    held_out = record.eval_data
    assert [entry.step for entry in held_out.losses] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert held_out.losses[-1].loss == pytest.approx(expected, rel=1e-4)
    assert held_out.losses[-1].loss < held_out.losses[0].loss
    assert (held_out.name, held_out.examples, held_out.also_trained) == ("held_out.json", 12, 4)
    assert record.tokens > 8 * 4 * 10


def test_every_evaluation_runs_once(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of the last step, which is the end of an epoch, too."""
    steps, evaluate = [], ElasticTrainer.evaluate

    def count(self: ElasticTrainer, *given: Any, **named: Any) -> Any:
        steps.append(self.state.global_step)
        return evaluate(self, *given, **named)

    monkeypatch.setattr(ElasticTrainer, "evaluate", count)
    run(tmp_path / "out", steps=6)  # two epochs
    assert steps == [0, 1, 2, 3, 4, 5, 6]


def test_evaluating_changes_no_weight(run: Callable[..., Any], llama: TinySource, tmp_path: Path) -> None:
    run(tmp_path / "evaluated")
    inputs = open_inputs(str(llama.base), tmp_path / "data.json", llama.space)
    train(inputs, tmp_path / "plain", TrainOptions(**OPTIONS))
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("evaluated", "plain"))
    assert first == second


def test_epochs_auto_ends_by_the_held_out_loss(run: Callable[..., Any], tmp_path: Path) -> None:
    """Three steps an epoch, each with an evaluation, and at most 15; the rule is written out here."""
    changes = {"steps": None, "epochs": "auto"}
    record = run(tmp_path / "out", **changes)
    losses = {entry.step: entry.loss for entry in record.eval_data.losses}
    for decay in range(4, 12):
        epoch, before = [losses[step] for step in range(decay - 2, decay + 1)], [losses[step] for step in range(1, decay - 2)]
        if min(epoch) >= 0.95 * min(before) or decay == 11:
            break
    assert record.steps == decay + math.ceil(decay / 3)
    rates = {entry.step: entry.learning_rate for entry in record.losses}
    assert all(rates[step] == pytest.approx(OPTIONS["lr"]) for step in range(3, decay))
    assert rates[record.steps] < 0.5 * OPTIONS["lr"]

    def stop(step: int, *_: Any) -> None:
        if step == record.steps - 1:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, LonasEdgeError)):
        run(tmp_path / "again", report=stop, **changes)
    assert run(tmp_path / "again", resume=True, **changes).steps == record.steps
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


def test_epochs_auto_needs_held_out_data(llama: TinySource, tmp_path: Path) -> None:
    inputs = open_inputs(str(llama.base), write_data(tmp_path / "data.json"), llama.space)
    with pytest.raises(LonasEdgeError, match="pass --eval-data FILE, or a number of epochs"):
        train(inputs, tmp_path / "out", TrainOptions(**{**OPTIONS, "steps": None, "epochs": "auto"}))
    for wrong in ("never", "0", -1):
        with pytest.raises(LonasEdgeError, match="--epochs"):
            TrainOptions(epochs=wrong)
