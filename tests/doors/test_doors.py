"""Damaged inputs to every command, a few minutes of them with a fixed seed; and that the suite would see a fault."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("cases are forked, and their memory is limited by the kernel", allow_module_level=True)

import torch
from damage import MUTATORS, SECRET, Damaged, NotApplicableError
from expected import Case
from judge import judge
from mutators import mutate
from runner import Ran, run_forked
from safetensors.torch import save_file
from world import COMMANDS, Command

ROOT = Path(__file__).parent.parent.parent


def test_no_case_is_a_fault(tmp_path: Path):
    """The whole: `python benchmarks/doors.py`. A process of its own, because this one has computed and cannot be forked."""
    output = tmp_path / "doors.json"
    command = ["benchmarks/doors.py", "--seed", "12", "--cases", "40", "--work", tmp_path / "doors", "--output", output]
    ran = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.exists(), ran.stderr[-3000:]
    summary = json.loads(output.read_text())
    assert not summary["faults"], ran.stdout
    assert summary["cases"] == 40
    assert summary["outcomes"]["refused"] > 20 and summary["outcomes"]["right"] > 6, summary["outcomes"]


# mutators


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({"a": torch.ones(3, 4), "b": torch.zeros(3, 4), "c": torch.arange(5)}, path)
    elif path.suffix in (".bin", ".pt"):
        torch.save({"a": torch.ones(3, 4), "b": torch.zeros(3, 4)}, path)
    else:
        lines = [{"model_type": "llama", "sizes": [1, 2.5, {"deep": 3}]}, {"text": "é"}]
        whole = json.dumps(lines[0], indent=1)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) if path.suffix == ".jsonl" else whole)
    return path


NAMES = ["config.json", "a.json", "a.jsonl", "a.safetensors", "a.bin", "openvino_model.bin", "a.xml"]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_is_a_mutation(name: str, tmp_path: Path):
    found = []
    for attempt in range(2):
        for seed in range(60):
            folder = tmp_path / f"{attempt}-{seed}"
            (folder / "outside").mkdir(parents=True)
            other = _file(folder / "outside", name)
            told = mutate(Damaged(_file(folder, name), folder / "outside", (other,), random.Random(seed)))
            path = folder / name
            found.append(
                (
                    told.replace(f"{attempt}-{seed}", ""),
                    path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_dir(),
                )
            )
    assert found[:60] == found[60:]
    assert len({told for told, _ in found}) > 25


def test_every_mutator_changes_something(tmp_path: Path):
    for group, mutators in MUTATORS.items():
        name = {"json": "config.json", "lines": "a.jsonl", "pickle": "a.bin", "safetensors": "a.safetensors"}.get(
            group, "a.json"
        )
        for mutator in dict.fromkeys(mutators):
            assert any(_changes(mutator, name, tmp_path / f"{mutator.__name__}{seed}", seed) for seed in range(20)), mutator


def _changes(mutator: Any, name: str, folder: Path, seed: int) -> bool:
    (folder / "outside").mkdir(parents=True)
    other, path = _file(folder / "outside", f"other-{name}"), _file(folder, name)
    other.write_bytes(other.read_bytes() + b" ")
    before = path.read_bytes()
    try:
        mutator(Damaged(path, folder / "outside", (other,), random.Random(seed)))
    except (NotApplicableError, RuntimeError, ValueError):
        return False
    return path.is_symlink() or not path.is_file() or path.read_bytes() != before


# verdicts

RAN = Ran(1, "", "error: in/space.json: not JSON\n", 0.5)
COMMAND = Command([], [], "inspect", 1, [])


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/space.json").write_text("{")
    expected = {"unpruned": {"parameters": 5}, "groups": []}
    return Case(COMMAND, "space.json", "cut_off: at 1", tmp_path, tmp_path, RAN, {}, {}, expected)


@pytest.mark.parametrize(
    ("ran", "outcome"),
    [
        (RAN, "refused"),
        (replace(RAN, code=None), "hang"),
        (replace(RAN, code=-9), "traceback"),
        (replace(RAN, err="error: space.json\nTraceback (most recent call last):\n…\nKeyError: 1\n"), "traceback"),
        (replace(RAN, err="error: Expecting value: line 1 column 2\n"), "unnamed"),
        (replace(RAN, err="space.json is odd\n"), "unnamed"),
        (replace(RAN, code=0, out='{"unpruned": {"parameters": 5}, "groups": []}'), "right"),
        (replace(RAN, code=0, out='{"unpruned": {"parameters": 6}, "groups": []}', err=""), "wrong"),
        (replace(RAN, code=0, out="no JSON", err=""), "wrong"),
        (replace(RAN, code=0, out=f'{{"a": "{SECRET}"}}', err=""), "wrong"),
    ],
)
def test_verdicts(case: Case, ran: Ran, outcome: str):
    assert judge(replace(case, ran=ran)).outcome == outcome


@pytest.mark.parametrize("code", [0, 1])
def test_what_is_left_is_seen(case: Case, code: int):
    ran = replace(RAN, code=code, out=json.dumps(case.expected))
    assert judge(replace(case, ran=ran, after={"in/.out.x.incomplete": (1,)})).outcome == "littered"
    assert judge(replace(case, ran=ran, before={"in/a": (1, 2)}, after={"in/a": (1, 3)})).outcome == "littered"
    allowed = replace(COMMAND, writes=["in/out", "in/out/*"])
    written = {"in/out": (1,), "in/out/a": (2,)}
    expected = "right" if code == 0 else "littered"
    assert judge(replace(case, ran=ran, command=allowed, after=written)).outcome == expected


def test_a_child_that_hangs_is_ended(tmp_path: Path):
    def endless() -> None:
        import time

        time.sleep(60)

    assert run_forked(endless, tmp_path, tmp_path, 0.3).code is None
    assert run_forked(lambda: 3, tmp_path, tmp_path, 10).code == 3


def test_every_command_is_drawn():
    assert {command.arguments[0] for command in COMMANDS.values()} == {
        *("inspect", "space", "export", "bench", "eval", "train", "search")
    }
