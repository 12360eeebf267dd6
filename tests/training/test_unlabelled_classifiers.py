"""Classifiers and rerankers of no GLUE task: searched and recovered on texts without labels, by the unpruned model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bert import LAYERS, TinyBert, oracle_logits, reranker, tokenizer

MAXIMAL, MINIMAL = ([width for width in widths for _ in range(LAYERS)] for widths in ((64, 8, 128), (32, 6, 64)))
WORDS = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")
PAIRS = [(WORDS[n % 6], WORDS[n // 2 % 6]) for n in range(12)]
OPTIONS = ("--steps", 60, "--batch-size", 4, "--lr", 0.003, "--precision", "fp32")


def write(folder: Path) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"query": a, "passage": b}) + "\n" for a, b in PAIRS))
    return folder / "pairs.jsonl"


def distance(base: Path, adapter: Path | None, space: Path, widths: list[int]) -> float:
    """The oracle's mean distance from the whole base."""
    inputs = dict(tokenizer()(*zip(*PAIRS, strict=True), padding=True, return_tensors="pt"))
    whole, ours = (oracle_logits(base, *chosen, inputs) for chosen in ((None, space, MAXIMAL), (adapter, space, widths)))
    if whole.shape[1] == 1:
        return (whole - ours).square().mean().item()
    return (whole.softmax(-1) * (whole.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [1, 3])
def test_search_and_recovery(outputs: int, tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    base, data, space = reranker(tiny_bert, tmp_path / "base", outputs), write(tmp_path), tiny_bert.space()
    inputs = ("--nncf-config", space, "--data", data)
    search = ("--num-prompts", 12, "--evals", 8, "--cost", "macs", "--json")
    ran = run_cli("search", base, *inputs, *search, "--output", tmp_path / "search")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert record["units"]["kl"] == ("squared distance" if outputs == 1 else "nats") and record["data"]["template"] == "texts"
    smallest = max(record["evaluations"], key=lambda entry: entry["quality"])
    widths = [width if width not in (8, 6) else 8 for width in smallest["widths"]]
    assert smallest["quality"] == pytest.approx(distance(base, None, space, widths), rel=0.05)

    command = ("train", "--from", base, *inputs, "--subnet", "minimal", "--teacher", base, "--eval-data", data, *OPTIONS)
    ran = run_cli(*command, "--json", "--output", tmp_path / "recovered")
    assert ran.code == 0, ran.err
    losses = [entry["loss"] for entry in json.loads(ran.out)["eval_data"]["losses"]]
    before, after = (distance(base, adapter, space, MINIMAL) for adapter in (None, tmp_path / "recovered"))
    assert losses[0] == pytest.approx(before, rel=1e-3) and losses[-1] == pytest.approx(after, rel=1e-3)
    assert after < 0.5 * before
    card = (tmp_path / "recovered/README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "The loss is the distance of the outputs" in card
    ran = run_cli("export", tmp_path / "recovered", "--weight-format", "fp32", "--output", tmp_path / "ir", "--json")
    assert ran.code == 0 and json.loads(ran.out)["subnetwork"]["name"] == "minimal", ran.err
    config = json.loads((tmp_path / "ir/config.json").read_text())
    assert outputs == 1 or config["id2label"] == {"0": "low", "1": "middle", "2": "high"}


def test_a_reranker_in_genai(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """`TextRerankPipeline` orders passages by the oracle's scores, through a sigmoid."""
    openvino_genai = pytest.importorskip("openvino_genai")
    base = reranker(tiny_bert, tmp_path / "base", 1)
    ran = run_cli("export", base, "--weight-format", "fp32", "--output", tmp_path / "ir")
    assert ran.code == 0, ran.err
    inputs = dict(tokenizer()([WORDS[0]] * 5, list(WORDS[1:]), padding=True, return_tensors="pt"))
    scores = oracle_logits(base, None, tiny_bert.space(), MAXIMAL, inputs)[:, 0].sigmoid()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    pipeline = openvino_genai.TextRerankPipeline(str(tmp_path / "ir"), "CPU", top_n=5, **exact)
    ranked = pipeline.rerank(WORDS[0], list(WORDS[1:]))
    assert [index for index, _ in ranked] == scores.argsort(descending=True).tolist()
    assert [score for _, score in ranked] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-4)
