"""Recovery for INT4: training starts from weights rounded by GPTQ, which are stored as the adapter's own base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import TinyModels
from training_runs import OPTIONS, logits_of, same
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import sha256
from lonas_edge.formats import FORMATS
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.stored import merged, stored
from lonas_edge.network.super_network import load_super_network
from lonas_edge.training.inputs import open_recovery
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

INT4 = {"steps": 4, "warmup_steps": 0, "lr": 0.02, "prompt": None, "weight_format": "int4_sym", "ratio": 0.6, "save_steps": 2}


def recover(start: Path, data: Path, output: Path, kill_at: int | None = None, resume: bool = False, **changes: Any) -> Any:
    def report(step: int, _steps: int, _log: Any) -> None:
        if step == kill_at:
            raise KeyboardInterrupt

    inputs = open_recovery(str(start), data, "minimal")
    train(inputs, output, TrainOptions(**{**OPTIONS, **INT4, **changes}), resume, report=report)
    return json.loads((output / "training.json").read_text())


@pytest.mark.parametrize("reorder", [False, True])
def test_the_base_is_stored(
    reorder: bool, trained: Callable, data: Path, tmp_path: Path, materialize: Callable, ids: torch.Tensor
) -> None:
    """A checkpoint that stock clients load, in the base's own channel order; nothing else changes in it."""
    start = trained("llama", reorder)
    before = open_source(str(start))
    originals = {path: sha256(path) for path in before.base.folder.iterdir()}
    record = recover(start, data, tmp_path / "out", lr=1e-9)
    assert {path: sha256(path) for path in before.base.folder.iterdir()} == originals
    opened = open_source(str(tmp_path / "out"))
    assert (opened.base.folder, opened.base.name) == (tmp_path / "out/base", before.base.name)
    assert record["base"]["sha256"] == {
        name: sha256(tmp_path / "out/base" / name) for name in ("config.json", "model.safetensors")
    }
    assert AutoTokenizer.from_pretrained(tmp_path / "out/base")("a b").input_ids
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (before.base.folder, tmp_path / "out/base"))
    assert theirs.keys() == ours.keys()
    changed = {name.removesuffix(".weight") for name in ours if not torch.equal(theirs[name], ours[name])}
    inner = {name for name in opened.architecture.linears if ".layers." in name}
    assert changed == inner - set(record["int8_layers"])
    network = load_super_network(opened)
    group = FORMATS["int4_sym"].group_size(opened.select().linears[name].in_features for name in inner)
    for name in changed:
        weight = merged(network.base.get_submodule(name), opened.select().linears[name]).detach()
        assert (stored(weight, FORMATS["int4_sym"], group) - weight).abs().max() < 1e-4, "training starts on the grid"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/base", dtype=torch.float32).eval()
    whole = logits_of(PeftModel.from_pretrained(model, str(tmp_path / "out")), ids)
    network.activate(opened.elasticity.maximal)
    assert (logits_of(network.model, ids) - whole).abs().max() < 1e-4
    network.activate(opened.select().widths)
    again = load_checkpoint(materialize(opened, list(opened.select().widths)))
    assert (logits_of(network.model, ids) - logits_of(again, ids)).abs().max() < 1e-4
    assert "`base` is its base" in (tmp_path / "out/README.md").read_text()


def test_it_resumes(trained: Callable, data: Path, tmp_path: Path) -> None:
    """With the base that it started from, to the same adapter."""
    start = trained("llama", True)
    whole = recover(start, data, tmp_path / "whole", steps=8)
    with pytest.raises((LonasEdgeError, KeyboardInterrupt)):
        recover(start, data, tmp_path / "killed", kill_at=3, steps=8)
    partial = tmp_path / "killed.partial"
    assert (partial / "base/model.safetensors").exists()
    resumed = recover(start, data, tmp_path / "killed", resume=True, steps=8)
    same(tmp_path / "whole", whole, tmp_path / "killed", resumed)
    assert sha256(tmp_path / "whole/base/model.safetensors") == sha256(tmp_path / "killed/base/model.safetensors")
    assert not partial.exists()


def test_killed_before_the_first_checkpoint(trained: Callable, data: Path, tmp_path: Path) -> None:
    """Nothing of the first try is used."""
    start = trained("llama", True)
    with pytest.raises((LonasEdgeError, KeyboardInterrupt)):
        recover(start, data, tmp_path / "out", kill_at=1)
    assert not (tmp_path / "out.partial").exists()
    assert recover(start, data, tmp_path / "out")["steps"] == 4


def test_int8_keeps_the_base(trained: Callable, data: Path, tmp_path: Path) -> None:
    recover(trained("llama", True), data, tmp_path / "out", weight_format="int8_sym", ratio=0.8)
    assert not (tmp_path / "out/base").exists()


def test_another_base_is_refused(tiny_models: TinyModels, trained: Callable, data: Path, tmp_path: Path) -> None:
    recover(trained("llama", False), data, tmp_path / "out", steps=1)
    with pytest.raises(LonasEdgeError, match=r"out: its training changed the base, which is in .*out/base. Omit --model."):
        open_source(str(tmp_path / "out"), str(tiny_models.source("llama").base))
    assert open_source(str(tmp_path / "out"), str(tmp_path / "out/base")).base.folder == tmp_path / "out/base"


def test_it_moves_as_a_whole(trained: Callable, data: Path, tmp_path: Path) -> None:
    recover(trained("llama", False), data, tmp_path / "out", steps=1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").rename(tmp_path / "elsewhere/other")
    assert open_source(str(tmp_path / "elsewhere/other")).base.folder == tmp_path / "elsewhere/other/base"


def test_it_is_the_start_of_another_recovery(trained: Callable, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    start = trained("llama", False)
    recover(start, data, tmp_path / "one", steps=1)
    more = ("--steps", 1, "--weight-format", "int4_sym", "--teacher", start)
    ran = run_cli("train", "--from", tmp_path / "one", "--data", data, "--output", tmp_path / "two", *more)
    assert ran.code == 0, ran.err
    assert (tmp_path / "two/base/model.safetensors").exists()
