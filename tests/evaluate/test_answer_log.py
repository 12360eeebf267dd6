"""Saved answers survive a kill at any point; a continued run asks the same batches as an uninterrupted one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from lonas_edge.evaluate.answers import AnswerLog, BatchedLM, LoggedTarget


class Recorder(LM):
    """Answers with the size of the batch, so that another batching would show; dies at a given batch."""

    def __init__(self, dies_at: int | None = None):
        super().__init__()
        self.batches: list[list[str]] = []
        self.dies_at = dies_at

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append([request.args[0] for request in requests])
        return [f"{request.args[0]} of {len(requests)}" for request in requests]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.batches.append(["".join(request.args) for request in requests])
        return [(-float(len(request.args[1])) / 3, True) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return [-1.5 for _ in requests]


REQUESTS = [
    Instance("generate_until", {}, (f"{'p' * (1 + index % 4)}{index}", {"until": []}), 0, (("one", "two")[index % 2], index, 1))
    for index in range(11)
]


def batched(path: Path, model: LM, size: int = 2, target: str = "target") -> BatchedLM:
    fake: Any = SimpleNamespace(identity={"name": target}, name=target, batch_size=size, load=lambda: model)
    return BatchedLM(LoggedTarget(fake, AnswerLog(path)), lambda *_: None)


def test_a_killed_run_continues_in_the_same_batches(tmp_path: Path):
    whole, first, second, killed = Recorder(), Recorder(dies_at=3), Recorder(), tmp_path / "killed"
    expected = batched(tmp_path / "whole", whole).generate_until(REQUESTS)
    assert [answer.split()[0] for answer in expected] == [request.args[0] for request in REQUESTS]
    with pytest.raises(KeyboardInterrupt):
        batched(killed, first).generate_until(REQUESTS)
    assert batched(killed, second).generate_until(REQUESTS) == expected
    assert first.batches + second.batches == whole.batches
    assert batched(killed, Recorder(dies_at=0)).generate_until(REQUESTS) == expected, "all answers are saved"
    other = Recorder()
    batched(killed, other, target="other").generate_until(REQUESTS)
    assert other.batches == whole.batches, "answers of one target are not another's"


def test_a_cut_line_is_ignored(tmp_path: Path):
    path, first = tmp_path / "log", Recorder()
    expected = batched(path, first).generate_until(REQUESTS)
    whole = path.read_bytes()
    for lost in (1, 5, 30):
        path.write_bytes(whole[:-lost])
        again = Recorder()
        assert batched(path, again).generate_until(REQUESTS) == expected
        assert again.batches == first.batches[-1:]
        assert batched(path, Recorder(dies_at=0)).generate_until(REQUESTS) == expected, "what followed the cut line is read"


def test_batches_do_not_mix_tasks_and_do_not_depend_on_others(tmp_path: Path):
    model = Recorder()
    batched(tmp_path / "log", model, size=4).generate_until([request for request in REQUESTS if request.task_name == "one"])
    alone = len(model.batches)
    batched(tmp_path / "log", model, size=4).generate_until(REQUESTS)
    assert all(len({int(prompt.lstrip("p")) % 2 for prompt in batch}) == 1 for batch in model.batches)
    assert model.batches[alone:] == [batch for batch in model.batches if int(batch[0].lstrip("p")) % 2 == 1]


def test_options_of_a_prompt_stay_together_and_floats_are_kept_exactly(tmp_path: Path):
    requests = [
        Instance("loglikelihood", {}, (f"q{index}", f" option {'x' * option}"), option, ("task", index, 1))
        for index in range(5)
        for option in range(3)
    ]
    model = Recorder()
    expected = batched(tmp_path / "log", model).loglikelihood(requests)
    assert [len(batch) for batch in model.batches] == [6, 6, 3]
    assert batched(tmp_path / "log", Recorder(dies_at=0)).loglikelihood(requests) == expected


def test_answers_of_a_changed_target_are_not_used(tmp_path: Path) -> None:
    """A target of the same name with other files answers anew."""
    log, calls = AnswerLog(tmp_path / "answers.jsonl"), []
    for files in ("a", "b", "a"):
        target: Any = SimpleNamespace(name="model", identity={"files": files}, load=object)
        LoggedTarget(target, log).answers(["prompt"], 1, lambda _model, files=files: [calls.append(files)])
    assert calls == ["a", "b"]
