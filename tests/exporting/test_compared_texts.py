"""`export --compare-texts`: texts are those of plain greedy loops, figures go where people look, bad input is refused."""

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
    found = []
    for prompt in ids:
        row = prompt.tolist()
        while len(row) < len(prompt) + NEW and ends not in row[len(prompt) :]:
            row.append(int(logits(torch.tensor([row]))[0, -1].argmax()))
        found.append(row[len(prompt) :])
    return found


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
def test_the_figures_are_those_of_plain_loops(
    calibrated: bool,
    llama: TinySource,
    choose: Choose,
    exports: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By PyTorch on the fp32 checkpoint and by openvino on the IR, neither with a KV cache; INT4, so that texts differ."""
    monkeypatch.setattr(texts, "BEGINNINGS", BEGINNINGS[:3])  # the plain loops take their time
    widths, options = choose(llama, "unequal:1"), {}
    if calibrated:
        examples = [{"instruction": f"What is {a} plus {a}?", "output": f"the {a + a}"} for a in range(30)]
        (tmp_path / "data.json").write_text(json.dumps(examples))
        options = {"calibration": tmp_path / "data.json", "int4_method": "gptq", "num_prompts": 8}
    folder = run(llama, widths, tmp_path / "ir", weight_format="int4", compare_texts=True, **options)
    whole = exports("llama", "unequal:1", stage="checkpoint", dtype="fp32", verify=False)
    ids = beginnings(llama, 3)
    expected = compare_texts(greedy(of_checkpoint(whole), ids, END), greedy(of_ir(folder), ids, END), NEW)
    found = Manifest.read(folder / "lonas_edge.json").texts
    assert found == expected
    assert expected.sdt > 0 and expected.equal < 3, "nothing differs"
    card = (folder / "README.md").read_text()
    assert f"| {found.fdt:.1f} | {found.fdt_norm:.2f} | {found.sdt:.1f} | {found.sdt_norm:.2f} | {found.equal} |" in card
    assert not list(folder.glob("graph-*"))


def test_the_whole_set_of_beginnings(run_cli: Callable, llama: TinySource, tmp_path: Path) -> None:
    arguments = ["--output", tmp_path / "out", "--weight-format", "fp16", "--compare-texts"]
    ran = run_cli("export", *llama.arguments(), *arguments, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["schema"] == "lonas-edge/manifest/1"
    assert found["texts"]["prompts"] == len(BEGINNINGS) == 12 and found["texts"]["new_tokens"] == NEW
    assert found["texts"]["fdt_norm"] > 0.9 and found["texts"]["sdt_norm"] < 0.1, "fp16 rounds little"
    assert {"fp32_texts", "compare_texts"} <= found["steps"].keys()
    ran = run_cli("export", *llama.arguments(), *arguments, "--overwrite")
    assert "12 texts of up to 32 tokens, compared with fp32: FDT" in " ".join(ran.out.split())


def test_greedy_generation() -> None:
    """A model that says the last token plus one, by what it is asked: the prompt, then a token at a time."""
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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--weight-format", "fp32"], "--compare-texts cannot be combined with --weight-format fp32"),
        (["--stage", "checkpoint"], "--compare-texts needs --stage ir"),
        (["--no-verify"], "--compare-texts needs --verify"),
    ],
)
def test_texts_that_say_nothing(run_cli: Callable, llama: TinySource, tmp_path: Path, options: list[str], told: str) -> None:
    ran = run_cli("export", *llama.arguments(), "--output", tmp_path / "out", "--compare-texts", *options)
    assert ran.code == 2 and told in " ".join(ran.err.replace("│", "").split())
