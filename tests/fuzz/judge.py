"""Judges a command that ran on mutated files: refused, right, or a failure.

A command may do one of three things:

- refuse the file: exit code 1 or 2, an error that names the file, no traceback, nothing left behind;
- give the same result as on the original files;
- give another result if it cannot know better: the file is valid, no record holds its hash, and the result is right for this
  input. For exports, transformers and PEFT compute the expected logits from the same mutated files.
"""

import logging
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from answers import CHECKS, Case, answers_of, equal
from mutation import EXECUTED, SECRET

FAILURES = ("traceback", "wrong", "hang", "unnamed", "littered")
OUTCOMES = ("refused", "right", *FAILURES)
# where two of these files contradict each other, either one may be named
_RELATED = (
    {"config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"},
    {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"},
    {"config.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"},
    {"config.json", "adapter_config.json", "space.json", "nncf_config.json", "subnet.json", "subnetwork.json"},
    {"config.json", "channel_order.safetensors"},
    {"training.json", "config.json", "model.safetensors"},
    {"openvino_model.xml", "openvino_model.bin", "lonas_edge.json", "config.json"},
)
_LONGEST = 20_000  # characters of an error


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case, and why."""

    outcome: str
    why: str


def judge(case: Case) -> Verdict:
    """Judge a case. Computes, so call it in a child process."""
    ran = case.ran
    if ran.code is None:
        return Verdict("hang", f"not done after {ran.seconds:.0f} s")
    if ran.code not in (0, 1, 2):
        return Verdict("traceback", f"ended by {'signal' if ran.code < 0 else 'exit code'} {abs(ran.code)}")
    if message := _traceback(ran.err):
        return Verdict("traceback", message)
    if (case.folder / "in" / EXECUTED).exists():
        return Verdict("wrong", "code in a pickle was executed")
    allowed = case.command.write.split() if ran.code == 0 else []
    if left := [path for path in _changed(case) if not _may_change(path, allowed, ran.err)]:
        return Verdict("littered", f"left or changed: {left}")
    return _judge_refusal(case) if ran.code else _judge_success(case)


def _traceback(err: str) -> str:
    if "Traceback (most recent call last)" in err:
        return err.strip().splitlines()[-1][:300]
    match = re.search(r"^.*(error: unexpected: |lonas-edge --debug).*$", err, re.MULTILINE | re.IGNORECASE)
    return match.group()[:300] if match else ""


def _changed(case: Case) -> list[str]:
    paths = case.before.keys() | case.after.keys()
    return sorted(path for path in paths if case.before.get(path) != case.after.get(path))


def _may_change(path: str, allowed: list[str], error: str) -> bool:
    """Whether a command may leave this path: an output, or a log that the error names."""
    return any(fnmatch(path, pattern) for pattern in allowed) or (path.startswith("tmp/") and Path(path).name in error)


def _judge_refusal(case: Case) -> Verdict:
    error = case.ran.err
    start = error.find("rror: ")
    if start < 0:
        return Verdict("unnamed", f"no error: {error.strip()[-200:]!r}")
    if len(error) > _LONGEST:
        return Verdict("unnamed", f"an error of {len(error):,} characters")
    return Verdict("refused" if _names(error, case) else "unnamed", error[max(0, start - 1) :][:300])


def _names(error: str, case: Case) -> bool:
    """Whether the error names the file, its directory if it is gone, or a file that contradicts it."""
    name = Path(case.file).name
    if name in error:
        return True
    if not os.path.lexists(case.folder / "in" / case.file) or "others:" in case.mutation:
        return str(Path(case.file).parent) in error
    work = re.search(r"checkpoint-\d+|out\.partial(?=/partial\.json)", case.file)  # errors name the directory
    if work and work.group() in error:
        return True
    name, error = (re.sub(r"model-\d+-of-\d+\.safetensors", "model.safetensors", text) for text in (name, error))
    return any(other in error for group in _RELATED if name in group for other in group)


def _judge_success(case: Case) -> Verdict:
    folder = case.folder / "in"
    outputs = [path for path in (folder / "out").rglob("*") if path.is_file()]
    if SECRET in case.ran.out or any(SECRET.encode() in path.read_bytes() for path in outputs):
        return Verdict("wrong", "a secret of another file was published")
    try:
        answers = answers_of(case.command, case.folder, case.ran)
    except Exception as error:  # an output that cannot be opened
        return Verdict("wrong", f"the output cannot be opened: {type(error).__name__}: {str(error)[:200]}")
    if equal(answers, case.expected):
        return Verdict("right", "as without the mutation")
    if Path(case.file).name in case.ran.err:
        return Verdict("right", "another result, with a warning that names the file")
    try:
        wrong = CHECKS[case.command.kind](case, answers)
    except Exception as error:  # an input that transformers refuses
        wrong = f"accepted, but the judge cannot read it: {type(error).__name__}: {str(error)[:200]}"
    return Verdict("wrong", wrong) if wrong else Verdict("right", "another input, and right for it")


def quiet() -> None:
    """Suppress messages of the libraries while judging."""
    logging.disable(logging.ERROR)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
