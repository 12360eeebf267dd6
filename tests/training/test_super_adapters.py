"""A trained super-adapter against the oracle, plain PEFT and the live network; its files and its record."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from peft import PeftModel
from tiny_models import TARGETS, TinyModels, TinySource, families, unused_layers
from training_runs import (
    ADAPTER,
    OPTIONS,
    ORDER,
    RECORD,
    SPACE,
    TWELVE,
    logits_of,
    plain_adamw,
    plain_base,
    tensors_of,
    write_data,
)

from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.training.inputs import open_inputs
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

REORDERED = [pytest.param(*case.values, True, id=case.id, marks=case.marks) for case in families()] + [("gemma3", False)]


@pytest.mark.parametrize(("case", "reorder"), REORDERED)
def test_activated_equals_materialized_and_oracle(
    case: str, reorder: bool, tiny_models: TinyModels, trained, materialize: Callable, choose: Callable, ids: torch.Tensor
) -> None:
    """Plain PEFT loads the maximal network."""
    source, folder = tiny_models.source(case), trained(case, reorder)
    assert (folder / ORDER).exists() == reorder
    assert (folder / SPACE).read_bytes() == source.space.read_bytes()
    adapter = tensors_of(folder)
    used = [tensor for name, tensor in adapter.items() if not any(f".{layer}." in name for layer in unused_layers(case))]
    assert all(tensor.abs().max() > 1e-3 for tensor in used)  # lora_B started at 0: it was trained
    opened = open_source(str(folder))
    network = load_super_network(opened)
    activated = {}
    for name in ("heuristic", "unequal:3"):
        widths = choose(source, name)
        network.activate(widths)
        activated[name] = logits_of(network.model, ids)
        materialized = logits_of(load_checkpoint(materialize(opened, widths)), ids)
        assert (activated[name] - materialized).abs().max() < 1e-4, name
        expected = oracle_logits(source.base, folder, folder / SPACE, widths, ids)
        assert (activated[name] - expected).abs().max() < 1e-4, name
    assert (activated["heuristic"] - activated["unequal:3"]).abs().max() > 1e-2
    network.activate(choose(source, "maximal"))
    expected = logits_of(PeftModel.from_pretrained(plain_base(source), folder).eval(), ids)
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
    assert (oracle_logits(source.base, folder, None, [], ids) - expected).abs().max() < 1e-4


def test_plain_lora(llama: TinySource, data: Path, tmp_path: Path, choose: Callable, ids: torch.Tensor, watched) -> None:
    """Without a search space every step trains the whole adapter."""
    inputs, output = open_inputs(str(llama.base), data, elastic=False), tmp_path / "out"
    record = train(inputs, output, TrainOptions(**{**OPTIONS, "steps": 3}))
    assert (record.search_space, record.reordered) == (None, False)
    assert sorted(path.name for path in output.iterdir()) == sorted(["README.md", "adapter_config.json", ADAPTER, RECORD])
    assert [step for step, _ in watched.passes] == [0, 1, 2]
    assert all(torch.equal(plain_adamw(u, name, 0)[0], after) for u in watched.updates for name, after in u.after.items())
    logits = logits_of(load_super_network(open_source(str(output))).model, ids)
    assert (logits - oracle_logits(llama.base, output, None, [], ids)).abs().max() < 1e-4


def test_record(llama: TinySource, data: Path, trained: Callable, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = trained("llama", True)
    record = json.loads((folder / RECORD).read_text())
    files = ("config.json", "model.safetensors")
    hashes = {name: hashlib.sha256((llama.base / name).read_bytes()).hexdigest() for name in files}
    assert record["base"] == {"name": "base-llama", "revision": None, "sha256": hashes}
    data_sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    counts = {"kind": "instruction", "weight": 1.0, "examples": 40, "dropped": 0}
    assert record["data"] == [{"name": "data.json", "sha256": data_sha256, **counts}]
    assert (record["options"]["lr"], record["options"]["seed"], record["reordered"]) == (0.02, 42, True)
    assert (record["steps"], record["device"], record["precision"], record["processes"]) == (3, "cpu", "fp32", 1)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (8, 16, sorted(TARGETS))
    root = str(tmp_path_factory.getbasetemp()).encode()
    for path in folder.iterdir():
        assert root not in path.read_bytes(), path
        assert str(Path.cwd()).encode() not in path.read_bytes(), path


def test_dropped_examples_are_counted_and_reported(llama: TinySource, tmp_path: Path) -> None:
    """The default length is 4096 tokens."""
    long, empty = ({"instruction": "What is 1 plus 1?", "output": text} for text in ("2 " * 5000, ""))
    data, messages = write_data(tmp_path / "data.json", [*TWELVE, long, empty, empty]), []
    options, inputs = TrainOptions(**{**OPTIONS, "steps": 1}), open_inputs(str(llama.base), data, llama.space)
    record = train(inputs, tmp_path / "out", options, notify=messages.append)
    assert record is not None and (record.data[0].examples, record.data[0].dropped) == (12, 3)
    assert messages == ["data.json: 3 of 15 examples dropped: longer than --max-length 4096, or without output"]
