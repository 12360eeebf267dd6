"""Answers survive a kill at any point, and what follows is what an uninterrupted run would have computed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.answer_log import AnswerLog, ResumingLM


class Recorder(LM):
    """Answers with the number of the batch and its size, so that another batching would show; dies at a given batch."""

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


def requests(count: int = 11) -> list[Instance]:
    tasks = ("one", "two")
    return [
        Instance("generate_until", {}, (f"{'p' * (1 + index % 4)}{index}", {"until": []}), 0, (tasks[index % 2], index, 1))
        for index in range(count)
    ]


def run(path: Path, model: LM, asked: list[Instance] | None = None, size: int = 2, fresh: bool = False) -> list[str]:
    log = AnswerLog(path, {"name": "test"}, fresh)
    try:
        return ResumingLM(lambda: model, log, size, lambda *_: None).generate_until(asked or requests())
    finally:
        log.close()


@pytest.mark.parametrize("dies_at", range(6))
def test_a_killed_run_goes_on_in_the_same_batches(dies_at: int, tmp_path: Path):
    whole = Recorder()
    expected = run(tmp_path / "whole.jsonl", whole)
    assert [answer.split()[0] for answer in expected] == [request.args[0] for request in requests()]
    first = Recorder(dies_at)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.jsonl", first)
    second = Recorder()
    assert run(tmp_path / "killed.jsonl", second) == expected
    assert first.batches + second.batches == whole.batches
    assert run(tmp_path / "killed.jsonl", Recorder(dies_at=0)) == expected  # nothing is left to ask


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_line_cut_short_is_not_counted(lost: int, tmp_path: Path):
    path = tmp_path / "log.jsonl"
    expected = run(path, Recorder())
    path.write_bytes(path.read_bytes()[:-lost])
    again = Recorder()
    assert run(path, again) == expected
    assert len(again.batches) == 1
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    "damaged",
    [
        b"garbage",
        b"",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"3",
        b'{"answers": ["x"]}',
        b'{"batch": 3, "answers": ["x"]}',
        b'{"batch": "HASH", "answers": "x"}',
        b'{"batch": "HASH", "answers": ["only one"]}',
        b'{"batch": "HASH", "answers": ["wrong", "wrong"]}',
        b'{"batch": "HASH", "answers": ["wrong", "wrong"], "check": "0123456789abcdef"}',
        b'{"batch": "HASH", "answers": ["wrong", "wrong"], "check": null}',
    ],
)
def test_the_batch_of_a_damaged_line_is_asked_again(damaged: bytes, tmp_path: Path):
    path, first = tmp_path / "log.jsonl", Recorder()
    expected = run(path, first)
    lines = path.read_bytes().splitlines()
    lines[3] = damaged.replace(b"HASH", json.loads(lines[3])["batch"].encode())
    path.write_bytes(b"\n".join(lines) + b"\n")
    again = Recorder()
    assert run(path, again) == expected
    assert again.batches == [first.batches[2]]  # the identity is the first line
    assert path.read_bytes().splitlines()[: len(lines)] == lines  # what was there is left as it was
    assert run(path, Recorder(dies_at=0)) == expected  # nothing is left to ask


def test_batches_do_not_mix_tasks_and_do_not_depend_on_others(tmp_path: Path):
    model = Recorder()
    run(tmp_path / "log.jsonl", model, [request for request in requests() if request.task_name == "one"], size=4)
    alone = len(model.batches)
    run(tmp_path / "log.jsonl", model, size=4)
    assert all(len({int(prompt.lstrip("p")) % 2 for prompt in batch}) == 1 for batch in model.batches)
    assert model.batches[alone:] == [batch for batch in model.batches if int(batch[0].lstrip("p")) % 2 == 1]


def test_options_of_a_prompt_stay_together_and_floats_are_kept_exactly(tmp_path: Path):
    asked = [
        Instance("loglikelihood", {}, (f"q{index}", f" option {'x' * option}"), option, ("task", index, 1))
        for index in range(5)
        for option in range(3)
    ]
    model, log = Recorder(), AnswerLog(tmp_path / "log.jsonl", {})
    found = ResumingLM(lambda: model, log, 2, lambda *_: None).loglikelihood(asked)
    assert [len(batch) for batch in model.batches] == [6, 6, 3]
    log.close()
    log = AnswerLog(tmp_path / "log.jsonl", {})
    again = ResumingLM(lambda: pytest.fail("nothing is left to ask"), log, 2, lambda *_: None).loglikelihood(asked)
    assert again == found


def test_fresh_asks_again_and_loses_nothing(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    run(path, Recorder())
    lines = path.read_text().splitlines()
    again = Recorder()
    run(path, again, [request for request in requests() if request.task_name == "one"], fresh=True)
    assert len(again.batches) == 3
    assert path.read_text().splitlines()[: len(lines)] == lines
    run(path, Recorder(dies_at=0))  # the other task's answers are there


def test_two_runs_at_once_are_refused(tmp_path: Path):
    log = AnswerLog(tmp_path / "log.jsonl", {})
    with pytest.raises(LonasEdgeError, match="another evaluation of the same model is running"):
        AnswerLog(tmp_path / "log.jsonl", {}, fresh=True)
    log.close()
    AnswerLog(tmp_path / "log.jsonl", {}).close()


HOLDS = """
import sys
from pathlib import Path
from lonas_edge.evaluate.answer_log import AnswerLog
log = AnswerLog(Path(sys.argv[1]), {})
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_refused_and_a_killed_one_locks_nothing(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LonasEdgeError, match="another evaluation of the same model is running"):
            AnswerLog(path, {})
    finally:
        other.kill()
        other.communicate()
    AnswerLog(path, {}).close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LonasEdgeError, match="finished answers cannot be kept there"):
        AnswerLog(tmp_path / "file/log.jsonl", {})


def test_no_flipped_bit_makes_a_wrong_answer(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    expected = run(path, Recorder())
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert run(path, Recorder()) == expected, place


def test_answers_of_another_model_are_not_taken(tmp_path: Path):
    """The file's name says what answers depend on."""
    run(tmp_path / "other.jsonl", Recorder())
    (tmp_path / "other.jsonl").rename(tmp_path / "log.jsonl")
    model = Recorder()
    run(tmp_path / "log.jsonl", model)
    assert sum(map(len, model.batches)) == 11


def test_lines_of_the_version_before_are_asked_again(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    expected = run(path, Recorder())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "check"}) + "\n" for line in lines))
    model = Recorder()
    assert run(path, model) == expected
    assert sum(map(len, model.batches)) == 11


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="of POSIX systems")
def test_a_log_that_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    (tmp_path / "letter").write_text("dear")
    (tmp_path / "link.jsonl").symlink_to("letter")
    for name in ("pipe", "folder", "full", "link"):
        path = tmp_path / f"{name}.jsonl"
        with pytest.raises(LonasEdgeError, match=rf"{path}: finished answers cannot be kept there: ") as raised:
            AnswerLog(path, {})
        assert "\n" not in str(raised.value)
    assert (tmp_path / "letter").read_text() == "dear"
    (tmp_path / "folder.jsonl").rmdir()
    AnswerLog(tmp_path / "folder.jsonl", {}).close()  # the lock had been let go


def test_a_disk_that_fills_up(tmp_path: Path):
    """A line of which a part was written counts for nothing; the answers before it are kept."""
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = run(tmp_path / "whole" / "log.jsonl", Recorder())
    size = sum(map(len, (tmp_path / "whole/log.jsonl").read_bytes().splitlines(keepends=True)[:3])) + 20
    first, second = Recorder(), Recorder()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(LonasEdgeError, match=rf"{path}: the answers so far are kept, but no more: "):
            run(path, first)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    assert run(path, second) == expected
    assert second.batches == first.batches[2:] + [batch for batch in second.batches if batch not in first.batches]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("call", ["write", "fsync", "open", "ftruncate"])
def test_a_disk_that_fails(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "log.jsonl"
    expected = run(path, Recorder(), [requests()[0]])
    path.write_bytes(path.read_bytes() + b"cut off")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError, match=rf"{path}: .*: \[Errno 5\] Input/output error$"):
        patch.setattr(os, call, fails)
        run(path, Recorder())
    assert run(path, Recorder(dies_at=0), [requests()[0]]) == expected
