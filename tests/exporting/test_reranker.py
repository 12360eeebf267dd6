"""A reranker's IR in OpenVINO GenAI."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bert import LAYERS, TinyBert, oracle_logits, reranker, tokenizer

MAXIMAL = [width for width in (64, 8, 128) for _ in range(LAYERS)]
WORDS = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")


def test_a_reranker_in_genai(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """`TextRerankPipeline` orders passages by the oracle's scores, through a sigmoid."""
    openvino_genai = pytest.importorskip("openvino_genai")
    base = reranker(tiny_bert, tmp_path / "base", 1)
    run_cli("export", base, "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    inputs = dict(tokenizer()([WORDS[0]] * 5, list(WORDS[1:]), padding=True, return_tensors="pt"))
    scores = oracle_logits(base, None, tiny_bert.space(), MAXIMAL, inputs)[:, 0].sigmoid()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    pipeline = openvino_genai.TextRerankPipeline(str(tmp_path / "ir"), "CPU", top_n=5, **exact)
    ranked = pipeline.rerank(WORDS[0], list(WORDS[1:]))
    assert [index for index, _ in ranked] == scores.argsort(descending=True).tolist()
    assert [score for _, score in ranked] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-4)
