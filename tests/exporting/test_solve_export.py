"""`export --solve`: the reconstructed network, its record, and refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino_models import ir_logits
from safetensors.torch import load_file
from tiny_models import TinySource, mlp_consumers

from lonas_edge import load_checkpoint
from lonas_edge.exporting import reconstruction as reconstruction_module
from lonas_edge.network.correction import Correction


def has(output: str, *texts: object) -> None:
    """Every text occurs in the output, whatever its lines."""
    for text in texts:
        assert str(text) in " ".join(output.split()), f"{text!r} is not in:\n{output}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 short examples."""
    examples = [{"instruction": f"What is {a} plus {b}?", "output": f"the {a + b}"} for a in range(8) for b in range(5)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(examples))
    return path


@pytest.fixture
def export_to(run_cli: Callable, llama: TinySource, data: Path) -> Callable[..., Any]:
    """Runs the export: `export_to(output, *options)`."""

    def run(output: Path, *options: object) -> Any:
        return run_cli("export", *llama.arguments(), "--output", output, "--solve", data, "--num-prompts", 16, *options)

    return run


def test_the_ir_equals_the_corrected_checkpoint(export_to: Callable, tmp_path: Path, ids: torch.Tensor) -> None:
    for output, options in (("ir", ["--weight-format", "fp32"]), ("checkpoint", ["--stage", "checkpoint"])):
        assert export_to(tmp_path / output, *options).code == 0
    with torch.no_grad():
        expected = load_checkpoint(tmp_path / "checkpoint")(input_ids=ids).logits
    assert (ir_logits(tmp_path / "ir", ids) - expected).abs().max() < 1e-3
    deltas = load_file(tmp_path / "checkpoint/correction.safetensors")
    assert set(deltas) == set(mlp_consumers("llama")) and all(delta.abs().max() > 0 for delta in deltas.values())
    assert not (tmp_path / "ir/correction.safetensors").exists()


def test_records(export_to: Callable, run_cli: Callable, llama: TinySource, tmp_path: Path) -> None:
    ran = export_to(tmp_path / "out")
    manifest = json.loads((tmp_path / "out/lonas_edge.json").read_text())
    solved = manifest["reconstruction"]
    assert {name: solved[name] for name in ("data", "prompts", "held_out", "kept")} == {
        "data": "data.json",
        "prompts": 16,
        "held_out": 2,
        "kept": True,
    }
    assert solved["after"] < solved["before"] and solved["tokens"] > 100
    figures = f"{solved['before']:.3f}", f"{solved['after']:.3f}"
    has(ran.out, "least-squares reconstruction on 16 prompts", *figures)
    has(
        (tmp_path / "out/README.md").read_text(),
        "Least-squares reconstruction",
        "16 prompts of `data.json`",
        "2 held-out",
        *figures,
    )
    assert run_cli("export", *llama.arguments(), "--output", tmp_path / "plain").code == 0
    assert json.loads((tmp_path / "plain/lonas_edge.json").read_text())["reconstruction"] is None


def test_a_correction_that_is_no_better_is_not_used(
    export_to: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = reconstruction_module.reconstruct

    def worse(*given: Any) -> Any:
        solution = solve(*given)
        wrong = {name: delta * 100 for name, delta in solution.correction.deltas.items()}
        return replace(solution, correction=Correction(wrong), after=solution.before)

    monkeypatch.setattr(reconstruction_module, "reconstruct", worse)
    ran = export_to(tmp_path / "out", "--stage", "checkpoint")
    assert ran.code == 0
    has(ran.out, "not used, it is no better")
    assert not (tmp_path / "out/correction.safetensors").exists()
    assert json.loads((tmp_path / "out/lonas_edge.json").read_text())["reconstruction"]["kept"] is False
    has((tmp_path / "out/README.md").read_text(), "No correction, since least squares was no better")


def test_refusals(export_to: Callable, run_cli: Callable, llama: TinySource, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for options, code, messages in (
        (["--subnet", "maximal"], 1, ["--solve has no effect: its maximal sub-network has full MLPs and all heads"]),
        (["--num-prompts", "37"], 1, [str(data), "40 prompts; expected at least 41", "--num-prompts"]),
        (["--num-prompts", "0"], 2, ["--num-prompts"]),
        (["--solve", str(tmp_path / "none.json")], 1, ["none.json"]),
    ):
        ran = export_to(output, *options)
        assert ran.code == code, ran
        has(ran.err, *messages)
        assert not output.exists()
    ran = export_to(tmp_path, "--overwrite")  # the directory of the data
    assert ran.code == 1 and data.exists()
    ran = run_cli("export", *llama.arguments(), "--output", output, "--num-prompts", "3")
    assert ran.code == 2
    has(ran.err, "--num-prompts needs --calibration or --solve")
