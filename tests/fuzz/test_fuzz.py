"""A few fuzz cases with a fixed seed, and tests of the fuzzer."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("cases are forked, and the kernel limits their memory", allow_module_level=True)

import torch
from answers import Case
from commands import Command
from judge import judge
from mutation import MUTATORS, SECRET, NotApplicableError, Target
from mutators import mutate
from runner import Ran, run_forked
from safetensors.torch import save_file

from lonas_edge.data.pooling import MODES, read_pooling
from lonas_edge.data.retrieval import read_retrieval
from lonas_edge.data.texts import COSINES, read_texts
from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import check_model_folder

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_no_case_fails(tmp_path: Path) -> None:
    """The full run: `python benchmarks/fuzz.py`. In a process of its own, since this one has threads and cannot be forked."""
    output = tmp_path / "fuzz.json"
    command = ["benchmarks/fuzz.py", "--seed", "12", "--cases", "40", "--work", tmp_path / "fuzz", "--output", output]
    ran = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert output.exists(), ran.stderr[-3000:]
    summary = json.loads(output.read_text())
    assert not summary["failures"], ran.stdout
    assert summary["cases"] == 40
    assert summary["outcomes"]["refused"] > 15 and summary["outcomes"]["right"] > 5, summary["outcomes"]


def _file(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({"a": torch.ones(3, 4), "b": torch.zeros(3, 4), "c": torch.arange(5)}, path)
    elif path.suffix == ".bin":
        torch.save({"a": torch.ones(3, 4), "b": torch.zeros(3, 4)}, path)
    else:
        lines = [{"model_type": "llama", "sizes": [1, 2.5, {"deep": 3}]}, {"text": "é"}]
        indented = json.dumps(lines[0], indent=1)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) if path.suffix == ".jsonl" else indented)
    return path


NAMES = ["config.json", "a.jsonl", "a.safetensors", "a.bin", "openvino_model.bin", "a.xml"]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_one_mutation(name: str, tmp_path: Path) -> None:
    """The same one each time, and different ones for different seeds."""
    runs: list[list[Any]] = [[], []]
    for attempt, mutations in enumerate(runs):
        for seed in range(40):
            folder = tmp_path / f"{attempt}-{seed}"
            other, path = _file(folder / "outside", name), _file(folder, name)
            message = mutate(Target(path, folder / "outside", (other,), random.Random(seed)))
            regular = path.is_file() and not path.is_symlink()
            mutations.append((message.replace(folder.name, ""), path.read_bytes() if regular else path.is_dir()))
    assert runs[0] == runs[1]
    assert len({message for message, _ in runs[0]}) > 15


POOLING = {
    "modules.json": [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}],
    "1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "include_prompt": True},
    "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": False},
    "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
}


@pytest.mark.parametrize("name", POOLING)
def test_files_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    """They are refused by name, or read as one of the supported poolings."""
    refused = 0
    for seed in range(60):
        folder = tmp_path / f"{seed}/model"
        (folder / "1_Pooling").mkdir(parents=True)
        for file, content in POOLING.items():
            (folder / file).write_text(json.dumps(content))
        outside = _file(tmp_path / f"{seed}/outside", Path(name).name)
        mutation = mutate(Target(folder / name, outside.parent, (outside,), random.Random(seed)))
        try:
            check_model_folder(folder)
            pooling = read_pooling(folder)
        except LonasEdgeError as error:
            refused += 1
            assert Path(name).name in str(error), mutation
            continue
        assert pooling is None or (pooling.mode in MODES and type(pooling.normalize) is bool), mutation
        assert pooling is None or pooling.default_prompt is None or pooling.prompted("a").endswith("a"), mutation
    assert 20 < refused < 60


ROWS = [{"query": f"what is {n}", "passage": f"{n} is a number", "score": n / 8} for n in range(8)]
LINES = {
    "sentences.jsonl": [json.dumps(row) for row in ROWS],
    "corpus.jsonl": [json.dumps({"_id": f"p{n}", "title": "", "text": row["passage"]}) for n, row in enumerate(ROWS)],
    "queries.jsonl": [json.dumps({"_id": f"q{n}", "text": row["query"]}) for n, row in enumerate(ROWS)],
    "qrels/test.tsv": ["query-id\tcorpus-id\tscore", *(f"q{n}\tp{n}\t1" for n in range(8))],
}


@pytest.mark.parametrize("name", LINES)
def test_data_of_embedding_models(name: str, tmp_path: Path) -> None:
    """They are refused by name, or read as texts with finite scores and known ids."""
    refused = 0
    for seed in range(60):
        folder = tmp_path / f"{seed}/data"
        (folder / "qrels").mkdir(parents=True)
        for file, lines in LINES.items():
            (folder / file).write_text("\n".join(lines) + "\n")
        outside = _file(tmp_path / f"{seed}/outside", Path(name).name)
        mutation = mutate(Target(folder / name, outside.parent, (outside,), random.Random(seed)))
        try:
            (_, texts), retrieval = read_texts(folder / "sentences.jsonl", COSINES), read_retrieval(folder)
        except LonasEdgeError as error:
            refused += 1
            assert Path(name).name in str(error), mutation
            continue
        assert all(text.strip() for each in texts for text in each.texts), mutation
        assert all(each.label is None or -1 <= each.label <= 1 for each in texts), mutation
        assert all(found.keys() <= retrieval.passages.keys() for found in retrieval.relevance.values()), mutation
    assert 10 < refused < 60


def test_every_mutator_changes_something(tmp_path: Path) -> None:
    names = {"json": "config.json", "lines": "a.jsonl", "pickle": "a.bin", "safetensors": "a.safetensors"}
    for group, mutators in MUTATORS.items():
        for mutator in dict.fromkeys(mutators):
            folders = (tmp_path / f"{mutator.__name__}{seed}" for seed in range(20))
            name = names.get(group, "a.json")
            assert any(_changes(mutator, name, folder, seed) for seed, folder in enumerate(folders)), mutator


def _changes(mutator: Any, name: str, folder: Path, seed: int) -> bool:
    other, path = _file(folder / "outside", f"other-{name}"), _file(folder, name)
    other.write_bytes(other.read_bytes() + b" ")
    before = path.read_bytes()
    try:
        mutator(Target(path, folder / "outside", (other,), random.Random(seed)))
    except (NotApplicableError, RuntimeError, ValueError):
        return False
    return path.is_symlink() or not path.is_file() or path.read_bytes() != before


RAN = Ran(1, "", "error: in/space.json: not JSON\n", 0.5)
COMMAND = Command("inspect", "", "inspect", 1, write="")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/space.json").write_text("{")
    expected = {"unpruned": {"parameters": 5}, "groups": []}
    return Case(COMMAND, "space.json", "truncate: 1 of 2 bytes", tmp_path, tmp_path, RAN, {}, {}, expected)


@pytest.mark.parametrize(
    ("ran", "outcome"),
    [
        (RAN, "refused"),
        (replace(RAN, code=None), "hang"),
        (replace(RAN, code=-9), "traceback"),
        (replace(RAN, err="error: space.json\nTraceback (most recent call last):\n…\nKeyError: 1\n"), "traceback"),
        (replace(RAN, err="error: Expecting value: line 1 column 2\n"), "unnamed"),
        (replace(RAN, err="space.json is wrong\n"), "unnamed"),
        (replace(RAN, code=0, out='{"unpruned": {"parameters": 5}, "groups": []}'), "right"),
        (replace(RAN, code=0, out='{"unpruned": {"parameters": 6}, "groups": []}', err=""), "wrong"),
        (replace(RAN, code=0, out="no JSON", err=""), "wrong"),
        (replace(RAN, code=0, out=f'{{"a": "{SECRET}"}}', err=""), "wrong"),
    ],
)
def test_verdicts(case: Case, ran: Ran, outcome: str) -> None:
    assert judge(replace(case, ran=ran)).outcome == outcome


@pytest.mark.parametrize("code", [0, 1])
def test_leftovers_are_seen(case: Case, code: int) -> None:
    ran = replace(RAN, code=code, out=json.dumps(case.expected))
    assert judge(replace(case, ran=ran, after={"in/.out.x.incomplete": (1,)})).outcome == "littered"
    assert judge(replace(case, ran=ran, before={"in/a": (1, 2)}, after={"in/a": (1, 3)})).outcome == "littered"
    command = replace(COMMAND, write="in/out in/out/*")
    written = {"in/out": (1,), "in/out/a": (2,)}
    expected = "right" if code == 0 else "littered"
    assert judge(replace(case, ran=ran, command=command, after=written)).outcome == expected


def test_a_child_that_hangs_is_ended(tmp_path: Path) -> None:
    def sleep() -> None:
        import time

        time.sleep(60)

    assert run_forked(sleep, tmp_path, tmp_path, 0.3).code is None
    assert run_forked(lambda: 3, tmp_path, tmp_path, 10).code == 3
