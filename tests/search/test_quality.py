"""What networks are scored on and how: held-out prompts, accuracy, what a weight format adds."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from stored_model import stored_model
from tiny_models import TinyModels, TinySource, say_only

from lonas_edge.data.encoding import IGNORED
from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS
from lonas_edge.ir import compress
from lonas_edge.network import heldout
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.source import Source
from lonas_edge.network.stored import stored
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search.compressed import CompressedNetwork

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


def ir_logits(source: Source, widths: Sequence[int], weight_format: str, batch: dict) -> torch.Tensor:
    """Logits of the matrices that an export stores at the positions that count."""
    live = stored_model(source, widths, weight_format)
    with torch.inference_mode():
        logits = live(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, batch["logits_to_keep"]][batch["labels"] != IGNORED]


COMPRESSED = ["llama", "llama-tied", "llama-biased", "neox", "phi3-tied", "gemma3", "gemma2-tied", "bloom-tied", "granite"]


@pytest.mark.parametrize(
    ("case", "name"),
    [*((case, "int8") for case in COMPRESSED), *itertools.product(["llama-biased", "phi3-tied", "gemma3"], ["int4", "fp16"])],
)
def test_quality_of_compressed_networks(case: str, name: str, tiny_models: TinyModels, data: Path, choose: Callable) -> None:
    tiny = tiny_models.source(case)
    source = tiny.opened()
    network = load_super_network(source)
    [batch] = read_held_out(source, data, 8, 0, "alpaca").batches(load_tokenizer(tiny.base))
    reference, found = network.reference([batch]), CompressedNetwork(network, name)
    plain = network.kl([choose(tiny, "unequal:3")], [batch])
    whole = network.family.logits(network.base, reference[0]).log_softmax(-1)
    for which in ("maximal", "unequal:3", "minimal"):
        widths = choose(tiny, which)
        log_q = ir_logits(source, widths, name, batch).log_softmax(-1)
        expected = (whole.exp() * (whole - log_q)).sum(-1).mean().item()
        assert found.score("kl", widths, [batch], reference) == pytest.approx(expected, rel=2e-2, abs=1e-5)
        loss = -log_q.gather(1, batch["labels"][batch["labels"] != IGNORED][:, None]).mean().item()
        assert found.score("loss", widths, [batch], reference) == pytest.approx(loss, rel=2e-3)
    assert network.kl([choose(tiny, "unequal:3")], [batch]) == plain, "the super-network is as it was"


@pytest.mark.parametrize("name", ["int8_sym", "int4_sym"])
def test_quality_in_every_format(name: str, tiny_models: TinyModels, data: Path, choose: Callable) -> None:
    test_quality_of_compressed_networks("llama-tied", name, tiny_models, data, choose)


_STORED = [(name, group) for name, one in FORMATS.items() if one.mode for group in (one.group_sizes[-2:] or (None,))]
_STORED += [("int4", -1), ("int4_sym", -1)]


@pytest.mark.parametrize(("name", "group"), _STORED)
def test_the_arithmetic_is_nncf_s(name: str, group: int | None) -> None:
    matrix = torch.randn(48, 192, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.001, 3, 48)[:, None]
    matrix[3], matrix[4], matrix[5] = matrix[3].abs(), -matrix[4].abs(), 0
    scheme = compress.Scheme(FORMATS[name], group)
    [(_, expected)] = compress._compress_stack(scheme, [("w", matrix.numpy())])
    restored, found = expected.restored(matrix.numpy())[0], stored(matrix, FORMATS[name], group).numpy()
    assert (restored != found).mean() < 1e-3, "but for ties"


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
    options = ("--data", questions, "--quality", "accuracy", "--protocol", "option-text", "--num-prompts", len(items))
    ran = run_cli(*command(*options, "--evals", "4", "--no-warm-start", "--no-refine", "--json"))
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    for one in record["evaluations"][:3]:
        right = sum(answered(llama, one["widths"], item["instruction"]) == item["answer"] for item in items)
        assert one["quality"] == pytest.approx(100 * right / len(items))
    front = [record["evaluations"][number] for number in record["front"]]
    assert max(one["quality"] for one in record["evaluations"]) == front[-1]["quality"], "more is better"


@pytest.mark.slow
def test_accuracy_of_math_questions(llama_copy: TinySource, run_cli: Callable, tmp_path: Path) -> None:
    """Half of the examples have the maximal network's output, as `eval` reads it, as their answers; the others do not."""
    config = llama_copy.base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    say_only(llama_copy.base, "0123456789.,-ABCDE ", louder="ABCDE")
    questions = {
        "gsm8k": [{"instruction": f"What is {n} plus 1?", "output": "Well.", "answer": "0"} for n in range(2)],
        "AQuA": [{"instruction": f"Which is {n}? (A) 0 (B) 1", "output": "Well.", "answer": "A"} for n in range(2)],
    }
    for task, samples in questions.items():
        (tmp_path / "asked" / task).mkdir(parents=True)
        (tmp_path / "asked" / task / "test.json").write_text(json.dumps(samples))
    asked = (
        "--datasets",
        tmp_path / "asked",
        "--prompt",
        "alpaca",
        "--protocol",
        "generate",
        "--subnet",
        "maximal",
        "--output",
        tmp_path / "out",
    )
    assert run_cli("eval", *llama_copy.arguments(), *asked).code == 0
    for task, samples in questions.items():
        (log,) = (tmp_path / "out/samples").glob(f"*/samples_{task}.jsonl")
        right, other = (json.loads(line)["filtered_resps"][0] for line in log.read_text().splitlines())
        samples[0]["answer"] = right if task == "AQuA" else str(float(right) + 0.0004)
        samples[1]["answer"] = "BCDEA"["ABCDE".index(other)] if task == "AQuA" else str(float(other) + 0.004)
    data = tmp_path / "questions.json"
    data.write_text(json.dumps([sample for samples in questions.values() for sample in samples]))
    command = ["search", *llama_copy.arguments(), "--data", data, "--output", tmp_path / "search", "--cost", "bytes"]
    command += ["--quality", "accuracy", "--num-prompts", 4, "--prompt", "alpaca"]
    command += ["--evals", 3, "--no-warm-start", "--no-refine", "--json"]
    ran = run_cli(*command)
    assert ran.code == 1
    assert "with --protocol generate of a math task" in ran.err
    ran = run_cli(*command, "--protocol", "generate")
    assert ran.code == 0, ran.err
    widest = [max(values) for values in llama_copy.groups()]
    assert [one["quality"] for one in json.loads(ran.out)["evaluations"] if one["widths"] == widest] == [50.0]


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
    with pytest.raises(LonasEdgeError, match="0 of 0 prompts"):
        replace(held, order=()).batches(load_tokenizer(llama.base))
