"""End to end: `compress` as a process on the real SmolLM2-135M."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models/smollm2-135m"
PROGRAM = Path(sys.executable).parent / "lonas-edge"
# the program with few measurements and short answers: a hardly trained model ends none
SHORT = """
if __name__ == "__main__":
    from lonas_edge.pipeline import baselines, measure
    measure.ROUNDS, measure.ANSWER_TOKENS = 2, 8
    from lonas_edge.cli import main
    main()
"""
WITHOUT_GPTQ = SHORT.replace("2, 8", "2, 8; baselines._SHARE = 0.0")  # it takes minutes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `model` and `chat.jsonl`."""
    folder = tmp_path_factory.mktemp("compress")
    model = folder / "model"
    if (MODEL / "tokenizer.json").exists():
        model.symlink_to(MODEL)
    else:
        subprocess.run([sys.executable, ROOT / "scripts/smollm2.py", model], check=True, capture_output=True)
    rows = [[("user", f"{a} + {b}"), ("assistant", str(a + b))] for a in range(8) for b in range(5)]
    messages = [[{"role": role, "content": content} for role, content in row] for row in rows]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    return folder


def command(folder: Path, program: list[str], source: str, output: str) -> dict[str, Any]:
    """A run with very short trainings in `place`, for `subprocess`."""
    line = [*program, "compress", source, "--data", "chat.jsonl", "--output", output]
    line += ["--weight-format", "int4_sym", "--recovery-steps", "2", "--draft", "none"]
    line += ["--prompt-len", "32"]
    return {"args": line, "cwd": folder, "env": {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}}


@pytest.fixture(scope="module")
def compressed(place: Path) -> Path:
    """The output of a run. Its target needs no table of latencies."""
    line = command(place, [sys.executable, "-c", WITHOUT_GPTQ], "model", "out")
    line["args"] += ["--target", "weights<=0.99x", "--epochs", "1"]  # a block or two
    done = subprocess.run(**line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return place / "out"


def test_the_model_is_smaller(compressed: Path) -> None:
    record = json.loads((compressed / "compress.json").read_text())
    baseline, *_, ours = record["networks"]
    assert ours["parameters"] < baseline["parameters"]
    assert ours["file_bytes"] < 0.75 * baseline["file_bytes"]
    assert record["metric"] in record["networks"][0]["quality"]
    assert all(0 < network["quality"]["loss"]["value"] < 6 for network in record["networks"])
    assert {step["name"].split()[0] for step in record["steps"]} - {"gptq"} == {
        "fine-tune", "space", "search", "recover", "export", "baselines", "measure",
    }  # fmt: skip
    answers = [sample["answers"] for sample in record["samples"]]
    assert answers
    assert all(answer[network["name"]] for answer in answers for network in record["networks"])
    for name in ("report.html", "report.md", "report.png"):
        assert (compressed / name).stat().st_size > 500
