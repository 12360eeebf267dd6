"""`eval --data`: answers as plain transformers generate them, scores as the definitions of the metrics give them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tiny_models import TinyModels, TinySource
from transformers import AutoModelForCausalLM, AutoTokenizer

import lonas_edge
from lonas_edge.evaluate.report import EvalRecord
from lonas_edge.exporting.export import ExportOptions, export

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
F32 = ("--property", "INFERENCE_PRECISION_HINT=f32", "--property", "KV_CACHE_PRECISION=f32")
NEW_TOKENS = 32  # at least; twice the longest reference is less


@pytest.fixture(scope="module")
def chatty(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> TinySource:
    """The tiny LLaMA with a chat template, and a context that the prompts fit in. Not to be changed."""
    source = tiny_models.source("llama").copied_to(tmp_path_factory.mktemp("chatty"))
    path = source.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 1024}))
    (source.base / "chat_template.jinja").write_text(TEMPLATE)
    return source


def generate(base: Path, prompt: str) -> str:
    """A greedy answer by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)[0]
    return tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def conversation(*turns: str) -> dict[str, Any]:
    """System, user and assistant messages."""
    roles = ["system", *["user", "assistant"] * len(turns)]
    return {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]}


def test_answers_to_the_last_message_of_conversations(
    chatty: TinySource, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lonas_edge.evaluate.generated._ROOM", 0)
    rows = [conversation("Be brief.", "hello", "yes", "again", "no"), conversation("Be long.", "what", "none")]
    prompts = [
        "<system>Be brief.\n<user>hello\n<assistant>yes\n<user>again\n<assistant>",
        "<system>Be long.\n<user>what\n<assistant>",
    ]
    expected = [generate(chatty.base, prompt) for prompt in prompts]
    rows[1]["messages"][-1]["content"] = expected[1]  # this reference is what the model says
    ran = run_cli(
        "eval", chatty.base, "--data", write(tmp_path / "d.jsonl", rows), "--metric", "exact-match", "--metric", "chrf",
        "--output", tmp_path / "out", "--json",
    ).ok()  # fmt: skip

    target = json.loads(ran.out)["targets"][0]
    assert target["metrics"]["exact-match"] == pytest.approx({"value": 50, "low": 9.5, "high": 90.5}, abs=0.1)
    assert target["prompt"] == "chat"
    assert list(target["metrics"]) == ["exact-match", "chrf"]
    (log,) = (tmp_path / "out/samples").glob("*/*.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["answer"] for entry in entries] == expected
    assert [entry["exact-match"] for entry in entries] == [0, 1]
    assert entries[0]["reference"] == "no"


def test_an_ir_answers_as_its_network_and_differences_are_paired(chatty: TinySource, run_cli: Callable, tmp_path: Path):
    folder, source = tmp_path / "ir", chatty.opened()
    export(source, source.select("maximal"), folder, ExportOptions(weight_format="fp32", verify=False))
    rows = [{"instruction": text, "input": "", "output": "x"} for text in ("one", "two", "three", "four")]
    (tmp_path / "own.py").write_text("def length(answer, reference):\n    return len(answer)\n")
    adapter = [chatty.adapter, "--model", chatty.base, "--nncf-config", chatty.space, "--subnet", "maximal,minimal"]
    data = write(tmp_path / "d.jsonl", rows)
    ran = run_cli("eval", folder, *adapter, "--data", data, "--metric", f"{tmp_path}/own.py:length", "--json", *F32).ok()

    found = json.loads(ran.out)
    ir, maximal, minimal = found["targets"]
    assert ir["metrics"] == maximal["metrics"]
    assert ir["metrics"] != minimal["metrics"]
    same, other = found["differences"]
    assert (same["identical"], same["points"]) == (1.0, 0.0)
    assert other["points"] == pytest.approx(minimal["metrics"]["length"]["value"] - ir["metrics"]["length"]["value"])


def test_from_python(chatty: TinySource, tmp_path: Path):
    data = write(tmp_path / "d.jsonl", [{"instruction": "one", "input": "", "output": "x"}])
    record = lonas_edge.evaluate(chatty.base, data=data, metric=["exact-match", "chrf"], output=tmp_path / "out")

    assert list(record.targets[0].metrics) == ["exact-match", "chrf"]
    assert EvalRecord.read(tmp_path / "out/eval.json").targets == record.targets
    assert "| exact-match | chrf |" in record._repr_markdown_()


def test_classes_have_a_table(chatty: TinySource, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lonas_edge.evaluate.generated.BatchedLM.generate_until", lambda _, requests: ["yes"] * len(requests))
    rows = [{"instruction": str(number), "input": "", "output": "yes" if number < 6 else "no"} for number in range(8)]
    data = write(tmp_path / "d.jsonl", rows)
    ran = run_cli("eval", chatty.base, "--data", data, "--output", tmp_path / "out", "--json")

    task = json.loads(ran.out)["targets"][0]["tasks"][0]
    assert (task["metric"], task["classes"]) == ("exact-match", {"no": [2, 0.0], "yes": [6, 100.0]})
    assert "| yes | 6 | 100.0 |" in (tmp_path / "out/eval.md").read_text()


def test_a_chat_template_has_all_special_tokens(chatty: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in training and in openvino_genai: a tokenizer that begins texts with BOS adds none to a conversation."""
    source, given = chatty.copied_to(tmp_path / "begins"), []
    path = source.base / "tokenizer.json"
    content = json.loads(path.read_text())
    bos = AutoTokenizer.from_pretrained(source.base).bos_token
    number = AutoTokenizer.from_pretrained(source.base).bos_token_id
    special = {bos: {"id": bos, "ids": [number], "tokens": [bos]}}
    begin = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {"type": "TemplateProcessing", "single": begin, "pair": begin, "special_tokens": special}
    path.write_text(json.dumps(content))
    batched = HFLM.tok_batch_encode

    def watch(self: Any, *texts: Any, **options: Any) -> Any:
        encoded = batched(self, *texts, **options)
        given.append(encoded[0].tolist())
        return encoded

    monkeypatch.setattr(HFLM, "tok_batch_encode", watch)
    tokenizer = AutoTokenizer.from_pretrained(source.base)
    prompt = "<system>s\n<user>hello\n<assistant>"
    assert tokenizer(prompt)["input_ids"][0] == number
    lonas_edge.evaluate(source.base, data=write(tmp_path / "chat.jsonl", [conversation("s", "hello", "yes")]))
    rows = [{"instruction": "x", "input": "", "output": "y"}]
    lonas_edge.evaluate(source.base, data=write(tmp_path / "own.jsonl", rows))

    assert given[0] == [tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    assert given[1][0][0] == number


def test_what_a_template_writes_before_an_answer_is_no_part_of_it(
    chatty: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the empty <think> block of Qwen 3, which is in the training."""
    source = chatty.copied_to(tmp_path / "thinks")
    thinks = TEMPLATE.replace(
        "{{ m['content'] }}", "{{ '<think>\n\n</think>\n\n' if loop.last and m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    (source.base / "chat_template.jinja").write_text(thinks)
    given = ["<think>\n\n</think>\n\nyes", "yes", "<think>no</think>yes"]
    monkeypatch.setattr("lonas_edge.evaluate.generated.BatchedLM.generate_until", lambda *_: given)
    data = write(tmp_path / "d.jsonl", [conversation("s", str(number), "yes") for number in range(3)])
    record = lonas_edge.evaluate(source.base, data=data, metric="exact-match")
    assert record.targets[0].metrics["exact-match"].value == pytest.approx(100 * 2 / 3)


def test_metrics_of_one_name_are_refused(chatty: TinySource, run_cli: Callable, tmp_path: Path):
    data = write(tmp_path / "d.jsonl", [{"instruction": "x", "input": "", "output": "y"}])
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("def score(answer, reference):\n    return 1\n")
    metrics = [part for name in ("a.py", "b.py") for part in ("--metric", f"{tmp_path}/{name}:score")]
    ran = run_cli("eval", chatty.base, "--data", data, *metrics)

    assert ran.code == 2
    assert "--metric score: given twice, or two functions have this name" in ran.err


def test_another_template_than_that_of_conversations_is_refused(chatty: TinySource, run_cli: Callable, tmp_path: Path):
    data = write(tmp_path / "d.jsonl", [conversation("s", "hello", "yes")])
    ran = run_cli("eval", chatty.base, "--data", data, "--template", "alpaca")

    assert ran.code == 1
    assert f"--template alpaca: {data} holds conversations" in ran.err


def test_what_a_run_reads_is_kept(chatty: TinySource, run_cli: Callable, tmp_path: Path):
    """A draft, and the file of a metric."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/lonas_edge.json").write_text("{}")
    (tmp_path / "own/own.py").write_text("def score(answer, reference):\n    return 1\n")
    data = write(tmp_path / "d.jsonl", [{"instruction": "x", "input": "", "output": "y"}])
    for more in (["--draft", tmp_path / "own"], ["--metric", f"{tmp_path}/own/own.py:score"]):
        ran = run_cli("eval", chatty.base, "--data", data, *more, "--output", tmp_path / "own", "--overwrite")
        assert ran.code == 1
        assert f"{tmp_path / 'own'}: --overwrite would delete {tmp_path / 'own'}" in ran.err
    assert (tmp_path / "own/own.py").exists()


@pytest.mark.parametrize(
    ("row", "more", "code", "problem"),
    [
        ({"instruction": "x", "output": "y"}, ["--metric", "bleu"], 2, "--metric bleu: unknown; expected auto, exact-match"),
        ({"instruction": "x", "output": " "}, [], 1, "the reference answer is empty:\n  - example 2"),
        ({"instruction": "x", "output": "y"}, ["--tasks", "boolq"], 2, "--tasks has no effect: --data"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    chatty: TinySource, run_cli: Callable, tmp_path: Path, row: dict[str, Any], more: list[str], code: int, problem: str
):
    data = write(tmp_path / "d.jsonl", [{"instruction": "x", "output": "y"}, row])
    ran = run_cli("eval", chatty.base, "--data", data, *more)

    assert ran.code == code
    assert problem in ran.err
