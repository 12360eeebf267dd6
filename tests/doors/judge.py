"""Says of a command that was run on damaged files: refused, right, or a fault. Imports nothing of the package.

What a command may do with a damaged file:

- refuse it: exit code 1 or 2, an error that names the file, no traceback, and nothing left behind;
- answer as on the undamaged files;
- answer otherwise only where it could not know: the file is whole by itself (another model's, another choice), no record
  holds its hash, and the answer is the right one of *this* input. For an export that is asked of an oracle: transformers and
  PEFT on the same damaged files.
"""

import logging
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from damage import EXECUTED, SECRET
from expected import EXPLAINED, Case, answers_of, equal

FAULTS = ("traceback", "wrong", "hang", "unnamed", "littered")
OUTCOMES = ("refused", "right", *FAULTS)
# what belongs together: where two files contradict each other, nobody can say which one is damaged
_TOGETHER = (
    {
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
    },
    {"config.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"},
    {"config.json", "adapter_config.json", "space.json", "nncf_config.json", "subnet.json", "subnetwork.json"},
    {"config.json", "channel_order.safetensors"},
    {"training.json", "config.json", "model.safetensors"},
    {"openvino_model.xml", "openvino_model.bin", "lonas_edge.json", "config.json", "lonas_edge_runtime.json"},
)
_LONGEST = 20_000  # characters of an error


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a case, and why."""

    outcome: str
    why: str


def judge(case: Case) -> Verdict:
    """Judge a case; computes, so to be called in a child."""
    ran = case.ran
    if ran.code is None:
        return Verdict("hang", f"not done after {ran.seconds:.0f} s")
    if ran.code not in (0, 1, 2):
        return Verdict("traceback", f"ended by {'signal' if ran.code < 0 else 'exit code'} {abs(ran.code)}")
    if _unforeseen(ran.err):
        return Verdict("traceback", _unforeseen(ran.err))
    if (case.folder / "in" / EXECUTED).exists():
        return Verdict("wrong", "what came with the model was executed")
    if ran.code:
        return _judge_refusal(case)
    left = [path for path in _changed(case) if not any(fnmatch(path, pattern) for pattern in case.command.writes)]
    if left:
        return Verdict("littered", f"left or changed: {left}")
    return _judge_success(case)


def _unforeseen(err: str) -> str:
    """The line that tells of an error that nobody foresaw."""
    if "Traceback (most recent call last)" in err:
        return err.strip().splitlines()[-1][:300]
    found = re.search(r"^.*(error: unexpected: |lonas-edge --debug).*$", err, re.MULTILINE | re.IGNORECASE)
    return found.group()[:300] if found else ""


def _changed(case: Case) -> list[str]:
    paths = case.before.keys() | case.after.keys()
    return sorted(path for path in paths if case.before.get(path) != case.after.get(path))


def _judge_refusal(case: Case) -> Verdict:
    error = case.ran.err
    if left := [path for path in _changed(case) if not _told_log(path, error)]:
        return Verdict("littered", f"left or changed: {left}")
    where = error.find("rror: ")
    if where < 0:
        return Verdict("unnamed", f"no error: {error.strip()[-200:]!r}")
    if len(error) > _LONGEST:
        return Verdict("unnamed", f"an error of {len(error):,} characters")
    if not _names(error, case):
        return Verdict("unnamed", error[max(0, where - 1) :][:300])
    return Verdict("refused", error[max(0, where - 1) :][:300])


def _told_log(path: str, error: str) -> bool:
    """A log that the message sends the reader to."""
    return path.startswith("tmp/") and Path(path).name in error


def _names(error: str, case: Case) -> bool:
    name, place = Path(case.file).name, case.folder / "in" / case.file
    if name in error or (case.file.startswith("cache/") and ".jsonl" in error):
        return True
    if not os.path.lexists(place) or "others:" in case.told:
        return str(Path(case.file).parent) in error
    checkpoint = re.search(r"checkpoint-\d+", case.file)
    if checkpoint and checkpoint.group() in error:
        return True
    whole, said = (re.sub(r"model-\d+-of-\d+\.safetensors", "model.safetensors", text) for text in (name, error))
    return any(other in said for group in _TOGETHER if whole in group for other in group)


def _judge_success(case: Case) -> Verdict:
    folder = case.folder / "in"
    if SECRET in case.ran.out or any(_holds_secret(path) for path in (folder / "out").rglob("*") if path.is_file()):
        return Verdict("wrong", "a secret of another file was published")
    try:
        found = answers_of(case.command, case.folder, case.ran)
    except Exception as error:  # what cannot be opened is no right answer
        return Verdict("wrong", f"the output cannot be opened: {type(error).__name__}: {str(error)[:200]}")
    if equal(found, case.expected):
        return Verdict("right", "as undamaged")
    if Path(case.file).name in case.ran.err:
        return Verdict("right", "answers otherwise, and says so of the file")
    try:
        wrong = EXPLAINED[case.command.kind](case, found)
    except Exception as error:  # an input that transformers refuses
        wrong = f"accepted, and the judge cannot read it: {type(error).__name__}: {str(error)[:200]}"
    return Verdict("wrong", wrong) if wrong else Verdict("right", "another input, and right for it")


def _holds_secret(path: Path) -> bool:
    return SECRET.encode() in path.read_bytes()


def quiet() -> None:
    """What the libraries say while judging is not looked at."""
    logging.disable(logging.ERROR)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
