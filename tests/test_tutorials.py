"""The tutorials, copied and pasted: their commands and Python code run as they are printed, in a directory of their own.

The models that they name are directories there: a small random model with SmolLM2's tokenizer.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from postgresql import postgresql
from tiny_bert import VOCAB
from tiny_bert import tokenizer as bert_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from lonas_edge.exporting.exported import open_exported
from lonas_edge.families import CLASSIFICATION, EMBEDDING

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TITLED = re.compile(r'^```python title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)  # files that the reader saves
NOT_RUN = ("pip ", "docker ", "sudo ", "curl ", "lonas-edge export ADAPTER", "hf upload ")


def page(name: str) -> tuple[str, str]:
    """The shell commands and the Python code of a tutorial."""
    blocks = FENCE.findall((ROOT / f"docs/tutorials/{name}.md").read_text())
    shell = re.sub(r"\\\n\s*", " ", "".join(code for language, code in blocks if language == "sh"))
    lines = [line for line in shell.splitlines() if line and not line.startswith((*NOT_RUN, " "))]
    return "\n".join(lines), "".join(code for language, code in blocks if language == "python")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the tokenizer and chat template of SmolLM2-135M-Instruct."""
    folder = tmp_path_factory.mktemp("tutorials")
    original = ROOT / "models/smollm2-135m"
    if not (original / "tokenizer.json").exists():
        original = folder / "original"
        subprocess.run([sys.executable, ROOT / "scripts/smollm2.py", original], check=True, capture_output=True)
    data, tokens = folder / "orders.jsonl", folder / "tokens"  # fewer tokens: less to compute, and more than the tutorials keep
    subprocess.run([sys.executable, ROOT / "scripts/orders.py", data, "--examples", "240"], check=True, capture_output=True)
    trim = [sys.executable, "-m", "lonas_edge", "trim", original, "--data", data, "--vocabulary", "16640", "--output", tokens]
    subprocess.run([*map(str, trim)], check=True, capture_output=True)
    tokenizer = AutoTokenizer.from_pretrained(tokens)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files and models that the tutorials name."""
    (tmp_path / "HuggingFaceTB").mkdir()
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "BASE"):
        (tmp_path / name).symlink_to(base)
    (tmp_path / "chat.jsonl").symlink_to(base.parent / "orders.jsonl")
    bin_folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *changes: tuple[str, str]) -> str:
    """Run a tutorial, with texts of its commands and code replaced; return what they print."""
    shell, python = page(name)
    files = dict(TITLED.findall((ROOT / f"docs/tutorials/{name}.md").read_text()))
    for before, after in changes:
        assert before in "".join([shell, python, *files.values()])
        shell, python = shell.replace(before, after), python.replace(before, after)
        files = {file: code.replace(before, after) for file, code in files.items()}
    for file, code in files.items():
        Path(file).write_text(code)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell], input="Hello\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if python:
        Path("code.py").write_text(python)
        code = subprocess.run([sys.executable, "code.py"], capture_output=True, text=True, check=False)
        assert code.returncode == 0, f"{code.stdout}\n{code.stderr}"
        return done.stdout + code.stdout
    return done.stdout


def test_your_model(place: Path) -> None:
    few = ("--data chat.jsonl", "--data chat.jsonl --epochs 1 --recovery-steps 2 --draft none")
    some = (
        "100 * len(expected & found)",
        "1 + 99 * len(expected & found)",
    )  # of a random model; no target bounds a metric of 0
    python = ('data="chat.jsonl"', 'data="chat.jsonl", epochs=1, recovery_steps=2, draft="none"')
    printed = run("your-model", few, python, some)
    assert "numbers" in printed  # the metric of its own
    assert (place / "small/report.html").stat().st_size > 10_000
    assert "optimum-cli" in printed
    assert "tpot" not in printed.splitlines()[-1]  # the networks' names and figures, from Python
    assert len(printed.splitlines()[-1].split()) >= 3
    assert (place / "small/model-metric-2/openvino_model.xml").exists()  # of the command before
    notebook(('output="small"', 'output="small", epochs=1, recovery_steps=2, draft="none"'))


def notebook(*changes: tuple[str, str]) -> None:
    """Run the cells of the notebook, whose steps are finished; it shows tables."""
    cells = json.loads((ROOT / "docs/tutorials/compress.ipynb").read_text())["cells"]
    code = [("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    code[-1] = f"print(({code[-1]})._repr_markdown_())"
    code.insert(2, "print(record._repr_markdown_())")
    text = "\n".join(code)
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    Path("cells.py").write_text(text)
    done = subprocess.run([sys.executable, "cells.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| unpruned INT8 (optimum-cli) |" in done.stdout and "rouge-l" in done.stdout


def test_function_calls(place: Path, base: Path) -> None:
    """A random model whose chat template knows functions, in Qwen's form."""
    subprocess.run([sys.executable, ROOT / "scripts/calls.py", "calls.jsonl", "--examples", "240"], check=True)
    model = shutil.copytree(base, place / "Qwen/Qwen2.5-0.5B-Instruct")
    (model / "chat_template.jinja").write_text(
        "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
        "<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    printed = run("function-calls", ("--data calls.jsonl", "--data calls.jsonl --epochs 1 --recovery-steps 2 --draft none"))
    assert "json" in printed and json.loads(Path("tools.json").read_text())[0]["function"]["name"]
    assert "json" in json.loads(Path("small/compress.json").read_text())["metric"]


def test_the_steps_one_by_one(place: Path) -> None:
    run("steps", ("--epochs auto", "--epochs 1"), ("--variants subnet,lora-int4", "--variants subnet,lora-int4 --rounds 2"))
    assert len((place / "held_out.jsonl").read_text().splitlines()) == 100
    assert (place / "model/openvino_model.bin").stat().st_size < (place / "BASE/model.safetensors").stat().st_size / 3


def test_your_adapter(place: Path) -> None:
    adapter()
    run("your-adapter", ("--output small", "--recovery-steps 2 --draft none --output small"))
    for model in ("small/model", "model-int8"):
        assert (place / model / "openvino_model.xml").exists()


def test_serve(place: Path) -> None:
    adapter()
    export = [sys.executable, "-m", "lonas_edge", "export", "my-lora", "--model", "BASE", "--output", "DIR"]
    subprocess.run(export, check=True, capture_output=True)
    (place / "DRAFT_DIR").symlink_to("DIR")  # the model is a draft of itself
    run("serve")


def test_gpus_and_machines(place: Path) -> None:
    """On the CPU, with two processes instead of four GPUs, and a server of its own."""
    lines = (place / "chat.jsonl").read_text().splitlines(keepends=True)
    (place / "train.jsonl").write_text("".join(lines[40:]))
    (place / "held_out.jsonl").write_text("".join(lines[:40]))
    shorter = ("--epochs auto", "--epochs 1"), ("jsonl --output small", "jsonl --recovery-steps 2 --draft none --output small")
    few = ("--output super-adapter", "--steps 4 --batch-size 4 --output super-adapter")
    with postgresql() as url:
        storage = ("STORAGE=postgresql+psycopg://lonas:change-me@SERVER/optuna", f"STORAGE={url}")
        run(
            "gpus-and-machines",
            *shorter,
            few,
            storage,
            ("--nproc-per-node 4", "--nproc-per-node 2"),
            ("--evals 40", "--evals 6 --num-samples 32"),
        )
    assert json.loads((place / "super-adapter/training.json").read_text())["processes"] == 2
    assert len(json.loads((place / "search-1/search.json").read_text())["evaluations"]) == 6


def test_a_published_adapter(place: Path) -> None:
    """The search space of a small model instead of that of LLaMA-7B, and an adapter that PEFT made for it."""
    names = {"yahma/llama-7b-hf": "BASE", "IntelLabs/lonas-llama-7b-commonsense-adapter": "my-lora"}
    adapter(r=32, target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"])
    for name, own in names.items():
        (place / name).parent.mkdir()
        (place / name).symlink_to(place / own)
    space = [sys.executable, "-m", "lonas_edge", "space", "--model", "BASE", "--output", "space.json"]
    subprocess.run(space, check=True, capture_output=True)
    rows = [
        {"instruction": f"Is {n} even?", "input": "", "output": "the correct answer is true", "answer": "true"}
        for n in range(8)
    ]
    Path("commonsense_15k.json").write_text(json.dumps(rows))
    Path("DATASETS/boolq").mkdir(parents=True)
    Path("DATASETS/boolq/test.json").write_text(json.dumps(rows[:2]))
    printed = run(
        "published-adapter",
        ("--nncf-config llama_7b", "--nncf-config space.json"),
        ("--tasks commonsense", "--tasks boolq"),
        ("--output super-adapter", "--steps 2 --output super-adapter"),
    )
    assert "unpruned LoRA" in printed
    for name in ("llama-heuristic/openvino_model.xml", "eval/eval.json", "super-adapter/training.json"):
        assert (place / name).exists()


def adapter(**options: Any) -> None:
    """A LoRA adapter as PEFT makes it by default: q_proj and v_proj."""
    torch.manual_seed(1)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained("BASE"), peft.LoraConfig(**{"r": 16, "task_type": "CAUSAL_LM", **options})
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained("my-lora")


def test_classifier(place: Path) -> None:
    """Own labels on a random language model; a random BERT, and pairs of words that entail each other if they are equal."""
    texts = ("will it rain tomorrow", "book a table for two", "play some music")
    rows = [{"text": f"{texts[n % 3]} {n}", "label": ("Weather", "Book", "Play")[n % 3]} for n in range(200)]
    Path("labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, pad_token_id=0
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained("BERT")
    bert_tokenizer().save_pretrained("BERT")
    words = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")
    for name, count in (("train", 400), ("dev", 40)):
        rows = ["index\tsentence1\tsentence2\tlabel"]
        for n in range(count):
            first, second = words[n % 6], words[n // 2 % 6]
            rows.append(f"{n}\t{first}\t{second}\t{'entailment' if first == second else 'not_entailment'}")
        Path("glue_data/RTE").mkdir(parents=True, exist_ok=True)
        Path(f"glue_data/RTE/{name}.tsv").write_text("\n".join(rows) + "\n")
    # MACs instead of latency: most of the time of so small a model does not depend on its widths
    macs = ("--cost latency", "--cost macs"), ("latency=0.7x", "macs=0.7x"), ("latency-0.7x", "macs-0.7x")
    printed = run("classifier", *macs, ("jsonl --output small", "jsonl --recovery-steps 2 --output small"))
    assert open_exported(Path("small/model")).config["id2label"]["2"] == "Weather"
    assert len(Path("RTE/held_out.tsv").read_text().splitlines()) == 251
    assert "unpruned-model" in printed and "model (int8_sym)" in printed
    assert "tensor([[" in printed  # the logits, from Python


def test_embedding(place: Path) -> None:
    """A random BERT of six layers with the files of sentence-transformers, and one with a score."""
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, pad_token_id=0,
        max_position_embeddings=160,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained("MODEL")
    bert_tokenizer().save_pretrained("MODEL")
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
    Path("MODEL/modules.json").write_text(json.dumps(modules))
    Path("MODEL/1_Pooling").mkdir()
    Path("MODEL/1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    words = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")
    texts = [" ".join((words[n % 6], words[n // 6 % 6], words[n // 36 % 6])) for n in range(700)]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pairs = [{"query": texts[n], "passage": texts[7 * n]} for n in range(64)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained("RERANKER")
    bert_tokenizer().save_pretrained("RERANKER")
    Path("DATASETS/STS-B").mkdir(parents=True)
    rows = [f"{n}\t{texts[n]}\t{texts[n + 7 * (n % 3)]}\t{5 - 2 * (n % 3)}" for n in range(60)]
    Path("DATASETS/STS-B/dev.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tscore", *rows]) + "\n")
    printed = run(
        "embedding", ("--epochs 3", "--epochs 1"), ("jsonl --output small", "jsonl --recovery-steps 2 --output small")
    )
    assert open_exported(Path("small/model")).kind is EMBEDDING
    assert open_exported(Path("small-reranker/model")).kind is CLASSIFICATION
    assert "unpruned-model" in printed and "held-out loss" in printed
    losses = json.loads(Path("recovered/training.json").read_text())["eval_data"]["losses"]
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    assert json.loads(Path("model/config.json").read_text())["num_hidden_layers"] == 4
    assert "STS-B: Spearman, Pearson" in printed
