"""End to end: `compress` and `chat` as processes on the real SmolLM2-135M, killed once on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openvino_genai
import pytest
from transformers import AutoTokenizer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models/smollm2-135m"
PROGRAM = Path(sys.executable).parent / "lonas-edge"


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run with very short trainings, killed in its recovery and continued."""
    folder = tmp_path_factory.mktemp("compress")
    model = folder / "model"
    if (MODEL / "tokenizer.json").exists():
        model.symlink_to(MODEL)
    else:
        subprocess.run([sys.executable, ROOT / "scripts/smollm2.py", model], check=True, capture_output=True)
    data = folder / "chat.jsonl"
    rows = [[("user", f"{a} + {b}"), ("assistant", str(a + b))] for a in range(8) for b in range(5)]
    messages = [[{"role": role, "content": content} for role, content in row] for row in rows]
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    line = [PROGRAM, "compress", model, "--data", data, "--output", folder / "out"]
    line += ["--weight-format", "int4_sym", "--recovery-steps", "2", "--prompt-len", "32", "--new-tokens", "4"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        first = subprocess.Popen([*map(str, line)], stdout=log, stderr=log, env=environment, cwd=folder)
        found = folder / "out.partial/steps/search/search.json"
        while first.poll() is None and not found.exists():
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert found.exists(), (folder / "log").read_text()
    assert not (folder / "out").exists()
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    assert "fine-tune" not in done.stderr  # finished before the kill
    assert "report.html" in done.stdout
    return folder / "out"


def test_the_model_is_smaller(compressed: Path) -> None:
    record = json.loads((compressed / "compress.json").read_text())
    baseline, stock_int4, ours = record["networks"]
    assert ours["parameters"] < baseline["parameters"]
    assert max(ours["file_bytes"], stock_int4["file_bytes"]) < 0.75 * baseline["file_bytes"]
    assert all(0 < network["quality"]["loss"]["value"] < 6 for network in record["networks"])
    assert {step["name"].split()[0] for step in record["steps"]} == {
        "fine-tune", "space", "search", "recover", "export", "baselines", "measure",
    }  # fmt: skip
    answers = [sample["answers"] for sample in record["samples"]]
    assert answers
    assert all(answer[network["name"]] for answer in answers for network in record["networks"])
    for name in ("report.html", "report.md", "report.png", "recipe.yaml"):
        assert (compressed / name).stat().st_size > 500


def test_chat_gives_the_answer_of_openvino_genai(compressed: Path) -> None:
    """Greedy, one turn: the same text as the library gives for the chat template's prompt."""
    tokenizer = AutoTokenizer.from_pretrained(compressed / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}], tokenize=False, add_generation_prompt=True
    )
    config = openvino_genai.GenerationConfig(max_new_tokens=8, do_sample=False, apply_chat_template=False)
    pipeline = openvino_genai.LLMPipeline(compressed / "model", "CPU")
    config.eos_token_id = tokenizer.eos_token_id
    expected = str(pipeline.generate(prompt, config))
    line = [str(PROGRAM), "chat", str(compressed), "--prompt", "Say hello.", "--max-new-tokens", "8"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()
