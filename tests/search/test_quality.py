"""What networks are scored on and how: held-out prompts, accuracy, what a weight format adds."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinySource

from lonas_edge.data.encoding import IGNORED
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search import heldout
from lonas_edge.search.compressed import format_damage
from lonas_edge.search.heldout import read_held_out

DATASETS = Path(__file__).parents[1] / "evaluate/data"


def test_prompts_are_a_seeded_choice(llama: TinySource, data: Path) -> None:
    source, tokenizer = llama.opened(), load_tokenizer(llama.base)

    def texts(seed: int, count: int) -> list[str]:
        batches = read_held_out(source, data, count, seed, "question").batches(tokenizer)
        return [tokenizer.decode(row, skip_special_tokens=True) for batch in batches for row in batch["input_ids"]]

    assert sorted(texts(0, 8)) == sorted(texts(0, 8)) != sorted(texts(1, 8))
    assert set(texts(0, 8)) < set(texts(0, 20)), "a larger choice holds the smaller one"
    assert len(set(texts(0, 40))) == 40
    assert all(text.startswith("Question: What is ") for text in texts(0, 40))


def test_batches_hold_every_prompt_once(llama: TinySource, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, tokenizer = llama.opened(), load_tokenizer(llama.base)
    held = read_held_out(source, data, 30, 0, "question")
    [whole] = held.batches(tokenizer)
    monkeypatch.setattr(heldout, "BATCH_TOKENS", 120)
    small = held.batches(tokenizer)
    assert len(small) > 5 and max(batch["input_ids"].numel() for batch in small) <= 120
    rows = sorted(tuple(row[row != 1].tolist()) for batch in small for row in batch["input_ids"])
    assert rows == sorted(tuple(row[row != 1].tolist()) for row in whole["input_ids"])
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in small) == int((whole["labels"] != IGNORED).sum())


def test_whether_the_training_has_seen_them(llama: TinySource, data: Path) -> None:
    assert read_held_out(llama.opened(), data, 8, 0).unseen is None


@pytest.mark.parametrize("name", ["int8", "int4", "fp32"])
@pytest.mark.parametrize("quality", ["kl", "loss"])
def test_what_a_format_adds(name: str, quality: str, llama: TinySource, data: Path) -> None:
    """Against the logits of the exported matrices, quantized by hand: here that fp32 adds nothing and fewer bits more."""
    source = llama.opened()
    network = load_super_network(source)
    batches = read_held_out(source, data, 8, 0, "alpaca").batches(load_tokenizer(llama.base))
    reference = network.reference(batches)
    added = format_damage(quality, source, name, network, batches, reference)
    if name == "fp32":
        assert abs(added) < 1e-5
    else:
        assert abs(added) > 1e-6
        if quality == "kl":
            assert added > 0
            assert (added > 1e-3) == (name == "int4")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Questions of two tasks, each with its answer, as one file."""
    items = [item for task in ("boolq", "ARC-Easy") for item in json.loads((DATASETS / task / "test.json").read_text())]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{**item, "output": f"the correct answer is {item['answer']}"} for item in items]))
    return path


def test_accuracy(run_cli: Callable, command: Callable, questions: Path, llama: TinySource) -> None:
    """Against the options ranked by the oracle's logits, a prompt at a time."""
    items = json.loads(questions.read_text())
    options = ("--data", questions, "--quality", "accuracy", "--protocol", "option-text", "--val-set-size", len(items))
    ran = run_cli(*command(*options, "--evals", "4", "--no-seeds", "--no-refine", "--json"))
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    for one in record["evaluations"][:3]:
        right = sum(answered(llama, one["widths"], item["instruction"]) == item["answer"] for item in items)
        assert one["quality"] == pytest.approx(100 * right / len(items))
    front = [record["evaluations"][number] for number in record["front"]]
    assert max(one["quality"] for one in record["evaluations"]) == front[-1]["quality"], "more is better"


def answered(source: TinySource, widths: list[int], instruction: str) -> str:
    """The answer word of the option that is most likely a character; of BoolQ's, most likely."""
    tokenizer = load_tokenizer(source.base)
    body, _, words = instruction.partition(": ")[2].partition("\n\nAnswer format: ")
    texts = dict.fromkeys(words.split("/"), "")
    if "\n\nAnswer1: " in body:
        body, _, listed = body.partition("\n\nAnswer1: ")
        pieces = re.split(r" Answer\d: ", listed)
        texts = dict(zip(texts, pieces, strict=True))
    start = tokenizer(f"Question: {body}\nAnswer:")["input_ids"]
    scores = {}
    for word, text in texts.items():
        ids = start + tokenizer(f" {text or word}")["input_ids"]
        log_p = oracle_logits(source.base, source.adapter, source.space, widths, torch.tensor([ids]))[0].log_softmax(-1)
        scores[word] = sum(log_p[at - 1, ids[at]].item() for at in range(len(start), len(ids))) / (len(text) or 1)
    return max(scores, key=scores.__getitem__)


def test_too_few_fit(llama: TinySource, data: Path) -> None:
    """None where nothing is chosen at all."""
    held = read_held_out(llama.opened(), data, 8, 0, "alpaca")
    with pytest.raises(LonasEdgeError, match="0 of 40 prompts"):
        replace(held, order=()).batches(load_tokenizer(llama.base))
