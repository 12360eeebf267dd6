"""Least-squares reconstruction before the recovery: against a base with the correction added, and its persistence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import oracle_logits
from safetensors.torch import load_file, save_file
from tiny_models import TinyModels, TinySource, mlp_consumers
from training_runs import OPTIONS, ORDER, RECORD, SPACE, logits_of, same, working

import lonas_edge.exporting.reconstruction
import lonas_edge.training.reconstruction
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.correction import Correction
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.training.inputs import open_recovery
from lonas_edge.training.options import SolveOptions, TrainOptions
from lonas_edge.training.train import train

FILE = "correction.safetensors"
FEW = {"steps": 3, "warmup_steps": 0, "lr": 0.02, "prompt": None}


def reconstructed(
    start: Path, data: Path, output: Path, resume: bool = False, at: int | None = None, **changes: Any
) -> dict[str, Any]:
    """The minimal sub-network, reconstructed on 16 prompts and trained; interrupted after the step `at`."""

    def kill(step: int, _steps: int, _log: Any) -> None:
        if step == at:
            raise KeyboardInterrupt

    inputs = replace(open_recovery(str(start), data, "minimal"), solve=SolveOptions(str(data), 16))
    train(inputs, output, TrainOptions(**{**OPTIONS, **FEW, **changes}), resume, report=kill)
    return json.loads((output / RECORD).read_text())


def changed_base(source: TinySource, adapter: Path, folder: Path) -> Path:
    """The base with the correction added; a column of it is a channel in the super-network's order."""
    shutil.copytree(source.base, folder)
    weights, order = load_file(folder / "model.safetensors"), load_file(adapter / ORDER) if (adapter / ORDER).exists() else {}
    deltas = load_file(adapter / FILE)
    assert set(deltas) == set(mlp_consumers(source.case))
    for name, delta in deltas.items():
        weight = weights[f"{name}.weight"]
        weight[:, order.get(name, torch.arange(weight.shape[1]))[: delta.shape[1]]] += delta
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("case", "reorder"), [("llama", True), ("phi3", False)])
def test_it_equals_the_adapter_on_a_changed_base(
    case: str, reorder: bool, tiny_models: TinyModels, trained, data: Path, tmp_path: Path, choose, materialize, ids
) -> None:
    source, widths, output = tiny_models.source(case), choose(tiny_models.source(case), "minimal"), tmp_path / "out"
    record = reconstructed(trained(case, reorder), data, output)
    figures = record["recovered"]["reconstruction"]
    assert (figures["prompts"], figures["held_out"], figures["kept"]) == (16, 2, True)
    assert figures["after"] < figures["before"]
    assert "`correction.safetensors` is added to the base's weights" in (output / "README.md").read_text()
    opened = open_source(str(output))
    expected = oracle_logits(changed_base(source, output, tmp_path / "changed"), output, output / SPACE, widths, ids)
    network = load_super_network(opened)
    network.activate(widths)
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
    assert (logits_of(load_checkpoint(materialize(opened, widths)), ids) - expected).abs().max() < 1e-4
    without = oracle_logits(source.base, output, output / SPACE, widths, ids)
    assert (without - expected).abs().max() > 1e-2


def test_exported(trained: Callable, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    """The export verifies the correction and records it."""
    record = reconstructed(trained("llama", True), data, tmp_path / "out")
    ran = run_cli("export", tmp_path / "out", "--stage", "checkpoint", "--output", tmp_path / "exported")
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "exported/lonas_edge.json").read_text())
    assert manifest["reconstruction"] == record["recovered"]["reconstruction"]
    assert FILE in manifest["adapter"]["sha256"]
    assert (tmp_path / "exported" / FILE).exists()


def test_resumed_equals_uninterrupted(trained: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The correction is kept next to the checkpoints and not computed again."""
    start = trained("llama", True)
    record = reconstructed(start, data, tmp_path / "whole", steps=8)
    with pytest.raises(LonasEdgeError, match=r"interrupted\."):
        reconstructed(start, data, tmp_path / "out", at=5, steps=8)
    assert (working(tmp_path / "out") / FILE).exists()
    (working(tmp_path / "out") / "solving-killed").mkdir()  # of a killed reconstruction
    monkeypatch.setattr(lonas_edge.training.reconstruction, "reconstruct_model", None)
    resumed = reconstructed(start, data, tmp_path / "out", resume=True, steps=8)
    same(tmp_path / "out", resumed, tmp_path / "whole", record)
    assert resumed["recovered"] == record["recovered"]
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()
    assert not working(tmp_path / "out").exists()


def test_a_correction_without_benefit_is_not_used(
    trained: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = lonas_edge.exporting.reconstruction.reconstruct

    def worse(*arguments: Any) -> Any:
        solution = solve(*arguments)
        return replace(solution, correction=Correction({"a": torch.ones(1)}), after=solution.before)

    monkeypatch.setattr(lonas_edge.exporting.reconstruction, "reconstruct", worse)
    record = reconstructed(trained("llama", True), data, tmp_path / "out")
    assert record["recovered"]["reconstruction"]["kept"] is False
    assert not (tmp_path / "out" / FILE).exists()
    assert FILE not in (tmp_path / "out/README.md").read_text()
    load_super_network(open_source(str(tmp_path / "out")))


def test_another_recovery_keeps_the_correction(trained: Callable, data: Path, tmp_path: Path) -> None:
    reconstructed(trained("llama", True), data, tmp_path / "one")
    train(open_recovery(str(tmp_path / "one"), data), tmp_path / "two", TrainOptions(**{**OPTIONS, **FEW}))
    one, two = (json.loads((tmp_path / name / RECORD).read_text())["recovered"] for name in ("one", "two"))
    assert one["reconstruction"] == two["reconstruction"] and FILE in two["sha256"]
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    with pytest.raises(LonasEdgeError, match="the unpruned network that --solve compares with is gone"):
        reconstructed(tmp_path / "one", data, tmp_path / "three")


def test_a_damaged_correction(trained: Callable, data: Path, tmp_path: Path) -> None:
    """All problems are listed."""
    reconstructed(trained("llama", True), data, tmp_path / "out")
    path = tmp_path / "out" / FILE
    deltas = load_file(path)
    first, second, third = sorted(deltas)
    deltas |= {first: deltas[first][:, :3].contiguous(), second: deltas[second] * torch.inf, "mine": deltas.pop(third)}
    save_file(deltas, path)
    with pytest.raises(LonasEdgeError) as raised:
        load_super_network(open_source(str(tmp_path / "out")))
    assert f"{path}: not a correction of this sub-network" in str(raised.value)
    for problem in (f"{first}: expected torch.float32 [64, 64]", f"{second}: ", "mine: the model has no such layer"):
        assert problem in str(raised.value)
    path.unlink()
    with pytest.raises(LonasEdgeError, match=rf"{path}"):
        load_super_network(open_source(str(tmp_path / "out")))


def test_wrong_usage(llama: TinySource, trained: Callable, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    start = trained("llama", True)
    base = ["train", "--data", data, "--output", tmp_path / "out", "--steps", 1, "--device", "cpu"]
    for arguments, code, message in (
        (["--model", llama.base, "--nncf-config", llama.space, "--solve", data], 2, "--solve needs --from"),
        (["--from", start, "--solve", data], 1, "expected at least 576. Add data, or lower --num-prompts"),
        (["--from", start, "--subnet", "maximal", "--solve", data], 1, "--solve has no effect: its maximal sub-network"),
    ):
        ran = run_cli(*base, *arguments)
        assert (ran.code, message in " ".join(ran.err.split())) == (code, True), ran.err
