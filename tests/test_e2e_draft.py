"""End to end: `draft` on the real SmolLM2-135M, whose answers to sums are easy to predict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models/smollm2-135m"
PROGRAM = Path(sys.executable).parent / "lonas-edge"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
SYSTEM = "Answer with a JSON object that repeats the two numbers, and nothing else."


def run(*words: object) -> str:
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_draft_of_a_real_model(tmp_path: Path) -> None:
    model = MODEL
    if not (MODEL / "tokenizer.json").exists():
        model = tmp_path / "model"
        subprocess.run([sys.executable, ROOT / "scripts/smollm2.py", model], check=True, capture_output=True)
    rows = [(f"{a} and {b}", json.dumps({"first": a, "second": b})) for a in range(12) for b in range(8)]
    messages = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in rows
    ]
    data, ir, draft = tmp_path / "chat.jsonl", tmp_path / "ir", tmp_path / "draft"
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    run("export", model, "--output", ir, "--weight-format", "int8_sym")
    run("draft", ir, "--data", data, "--output", draft)

    record = json.loads((draft / "draft.json").read_text())
    assert 0.3 < record["agreement"] <= 1
    drafted = [speed for speed in record["speeds"] if speed["num_assistant_tokens"]]
    assert all(1.2 < speed["tokens_per_pass"] <= speed["num_assistant_tokens"] + 1 for speed in drafted)
    assert sum(path.stat().st_size for path in draft.iterdir()) < 12e6  # 2.6 MB of them are tokenizers
    exact = [word for name, value in EXACT.items() for word in ("--property", f"{name}={value}")]
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages[::4]))
    evaluated = json.loads(run("eval", ir, "--draft", draft, "--data", data, "--metric", "chrf", "--json", *exact))
    assert evaluated["differences"][0]["identical"] == 1.0  # at default precision rounding changes some
    answer = run("chat", ir, "--draft", draft, "--prompt", "3 and 4")
    assert answer.strip()
