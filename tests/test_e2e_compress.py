"""End to end: `compress` and `chat` as processes on the real SmolLM2-135M, once killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openvino_genai
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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
    line += ["--prompt-len", "32", "--new-tokens", "4"]
    return {"args": line, "cwd": folder, "env": {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}}


@pytest.fixture(scope="module")
def compressed(place: Path) -> Path:
    """The output of a run. Its target needs no table of latencies."""
    line = command(place, [sys.executable, "-c", WITHOUT_GPTQ], "model", "out")
    line["args"] += ["--target", "weights<=0.97x", "--epochs", "1"]  # a few blocks
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
    line = [str(PROGRAM), "chat", str(compressed / "model"), "--prompt", "Say hello.", "--max-new-tokens", "8"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()


@pytest.mark.slow
def test_a_lora_of_plain_peft(place: Path) -> None:
    """Killed and continued. Its base comes from the adapter's configuration, its loss is PEFT's, and nothing is fine-tuned."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(place / "lora")
    line = command(place, [sys.executable, "-c", SHORT], "lora", "of-lora")
    line["args"] += ["--target", "kl=0.15"]  # a random adapter leaves the default no block to remove
    with (place / "log").open("w") as log:
        first = subprocess.Popen(**line, stdout=log, stderr=log)
        found = place / "of-lora.partial/steps/baselines/int8"
        while first.poll() is None and not found.exists():
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert found.exists(), (place / "log").read_text()
    assert not (place / "of-lora").exists()
    done = subprocess.run(**line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" not in done.stderr  # finished before the kill
    record = json.loads((place / "of-lora/compress.json").read_text())
    assert [step["name"].split()[0] for step in record["steps"] if step["name"] != "gptq"] == [
        "space", "search", "baselines", "recover", "export", "measure",
    ]  # fmt: skip
    baseline, *_, ours = record["networks"]
    assert ours["parameters"] < baseline["parameters"]
    lines = (place / "of-lora/steps/data/held_out.jsonl").read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    expected = held_out_loss(model, tokenizer, lines)
    with model.disable_adapter():
        distance = abs(held_out_loss(model, tokenizer, lines) - expected)
    assert distance > 0.3
    # rounding a random adapter to INT8 changes its loss by 0.15 nats, products in bf16 by 0.05
    assert baseline["quality"]["loss"]["value"] == pytest.approx(expected, abs=distance / 3)
    assert str(openvino_genai.LLMPipeline(place / "of-lora/model", "CPU").generate("3 + 4", max_new_tokens=4))


def held_out_loss(model: torch.nn.Module, tokenizer: Any, lines: list[str]) -> float:
    """Nats per token of the answers and their end, by transformers."""
    loss = tokens = 0.0
    for line in lines:
        question, answer = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
        learned = tokenizer(f"{answer['content']}<|im_end|>")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + learned])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        loss -= float(logits[range(len(learned)), learned].sum())
        tokens += len(learned)
    return loss / tokens
