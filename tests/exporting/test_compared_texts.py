"""`export --compare-texts`: texts vs. plain greedy loops, figures in manifest and card, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import psutil
import pytest
import torch
from openvino_models import F32, compiled_logits
from tiny_models import TinySource

import lonas_edge
from lonas_edge.data.calibration import BEGINNINGS, PROMPT_TOKENS
from lonas_edge.exporting import texts
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.ir.infer import generate
from lonas_edge.network.divergence import compare_texts
from lonas_edge.network.tokenizer import load_tokenizer

Choose = Callable[[TinySource, str], list[int]]
Next = Callable[[torch.Tensor], torch.Tensor]
NEW, END = 32, 1  # tokens of a text, and the one that ends it in the tiny models


def run(source: TinySource, widths: list[int], output: Path, **options: Any) -> Path:
    export(source.opened(), source.subnetwork(widths, "chosen"), output, ExportOptions(**options))
    return output


def greedy(logits: Next, ids: torch.Tensor, ends: int) -> list[list[int]]:
    """Text by text, token by token, everything computed anew each time."""
    actual = []
    for prompt in ids:
        row = prompt.tolist()
        while len(row) < len(prompt) + NEW and ends not in row[len(prompt) :]:
            row.append(int(logits(torch.tensor([row]))[0, -1].argmax()))
        actual.append(row[len(prompt) :])
    return actual


def of_checkpoint(folder: Path) -> Next:
    model = lonas_edge.load_checkpoint(folder, torch.float32)
    return torch.inference_mode()(lambda ids: model(input_ids=ids).logits)


def of_ir(folder: Path) -> Next:
    properties = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", properties)
    return lambda ids: compiled_logits(compiled, ids)


def beginnings(source: TinySource, count: int) -> torch.Tensor:
    by = load_tokenizer(source.base)
    return torch.tensor([by(text, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS] for text in BEGINNINGS[:count]])


@pytest.mark.parametrize("calibrated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_figures_equal_plain_loops(
    calibrated: bool,
    llama: TinySource,
    choose: Choose,
    exports: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """PyTorch on the fp32 checkpoint, openvino on the IR, both without a KV cache; INT4, so that texts differ."""
    monkeypatch.setattr(texts, "BEGINNINGS", BEGINNINGS[:3])  # the plain loops take their time
    widths, options = choose(llama, "unequal:1"), {}
    if calibrated:
        examples = [{"instruction": f"What is {a} plus {a}?", "output": f"the {a + a}"} for a in range(30)]
        (tmp_path / "data.json").write_text(json.dumps(examples))
        options = {"calibration": tmp_path / "data.json", "int4_method": "gptq", "num_prompts": 8}
    folder = run(llama, widths, tmp_path / "ir", weight_format="int4", compare_texts=True, **options)
    checkpoint = exports("llama", "unequal:1", stage="checkpoint", dtype="fp32", verify=False)
    ids = beginnings(llama, 3)
    expected = compare_texts(greedy(of_checkpoint(checkpoint), ids, END), greedy(of_ir(folder), ids, END), NEW)
    actual = Manifest.read(folder / "lonas_edge.json").texts
    assert actual == expected
    assert expected.sdt > 0 and expected.equal < 3, "nothing differs"
    card = (folder / "README.md").read_text()
    assert f"| {actual.fdt:.1f} | {actual.fdt_norm:.2f} | {actual.sdt:.1f} | {actual.sdt_norm:.2f} | {actual.equal} |" in card
    assert not list(folder.glob("graph-*"))


def test_greedy_generation() -> None:
    """A model that continues with the last token plus one; it receives the prompt, then a token at a time."""
    asked = []

    def answer(ids: np.ndarray, start: int) -> np.ndarray:
        asked.append((ids.shape, start))
        return np.eye(9)[(ids[:, start:] + 1) % 9]

    ids = np.array([[0, 1], [4, 5]])
    assert generate(answer, ids, 3, [7]) == [[2, 3, 4], [6, 7]]
    assert asked == [((2, 2), 0), ((2, 3), 2), ((2, 4), 3)]
    asked.clear()
    assert generate(answer, ids, 9, [2, 6]) == [[2], [6]]
    assert len(asked) == 1, "all had ended"
    assert generate(answer, ids, 1, [None]) == [[2], [6]], "no token ends a text"


def test_no_room_for_fp32(run_cli: Callable, llama: TinySource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * 10**8))
    ran = run_cli("export", *llama.arguments(), "--output", tmp_path / "out", "--compare-texts")
    assert ran.code == 1
    assert (
        "--compare-texts holds the uncompressed sub-network in memory: it needs about 1.0 GB, 0.5 GB are available"
        in " ".join(ran.err.split())
    )
    assert not (tmp_path / "out").exists()
