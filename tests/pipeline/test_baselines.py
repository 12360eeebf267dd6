"""What a result is compared with: which baselines, and what becomes of GPTQ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import PROBE, QUICK, equal_latencies, own_baseline
from tiny_models import TinySource

from lonas_edge.cli.compress import compress
from lonas_edge.commands import Command
from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir.write import ACTIVATION_GROUP, read_property
from lonas_edge.pipeline import baselines, run

INT8, INT4 = "unpruned INT8 (optimum-cli)", "unpruned INT4 (optimum-intel, GPTQ)"
GROUP = ", activation group"


def compressed(llama: TinySource, tmp_path: Path, data: Path) -> Any:
    return compress(llama.base, data=data, output=tmp_path / "out", **QUICK)


def test_stock_files_with_and_without_an_activation_group(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies differ in a property of the IR; GPTQ reads training examples as texts."""
    made: dict[str, Any] = {}

    def stored(command: Command, guards: Any) -> None:
        own_baseline(command, guards)
        if "texts" in command.paths:
            made["texts"] = json.loads(command.paths["texts"].read_text())

    def measured(folders: Any, *given: Any) -> Any:
        made["groups"] = {name: read_property(folder, ACTIVATION_GROUP) for name, folder in folders.items()}
        made["weights"] = {name: (folder / "openvino_model.bin").read_bytes() for name, folder in folders.items()}
        return equal_latencies(folders, *given)

    monkeypatch.setattr(baselines, "run_optimum", stored)
    monkeypatch.setattr("lonas_edge.pipeline.measure.latencies", measured)
    monkeypatch.setattr(baselines, "_SHARE", 1.0)
    record = compressed(llama, tmp_path, data)

    names = [INT8, INT8 + GROUP, INT4, INT4 + GROUP, "compressed INT8"]
    assert [network.name for network in record.networks] == names
    assert [made["groups"][name] for name in names[:4]] == [None, "64", None, "64"]  # widths of 64 and 128
    assert made["weights"][INT8] == made["weights"][INT8 + GROUP]
    assert len(made["texts"]) == 80 and made["texts"][0].startswith("Question: What is ")
    assert set(record.networks[0].quality) >= {"exact-match", "loss"}
    assert record.networks[1].quality["exact-match"].difference is not None

    # a finished run keeps no baselines: another target makes them again
    other = compress(llama.base, data=data, output=tmp_path / "out", **{**QUICK, "target": "weights<=0.9x"})
    assert [network.name for network in other.networks][: len(names) - 1] == names[:-1]


def test_amx_needs_no_activation_group(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rounds no activations, so the outputs are the same to the last bit."""
    monkeypatch.setattr(baselines, "instructions", lambda: ["avx512f", "amx_int8", "amx_bf16"])
    monkeypatch.setattr(baselines, "_SHARE", 0.0)
    assert [network.name for network in compressed(llama, tmp_path, data).networks] == [INT8, "compressed INT8"]


def test_gptq_that_takes_too_long_is_a_command(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "time_steps", lambda *_given: replace(PROBE, evaluation=10.0))
    record = compressed(llama, tmp_path, data)

    assert [network.name for network in record.networks] == [INT8, INT8 + GROUP, "compressed INT8"]
    [remark] = [each for each in record.warnings if "GPTQ" in each]
    assert "python -m lonas_edge.exporting.gptq --model" in remark


def test_a_failing_gptq_costs_the_comparison_alone(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(command: Command, guards: Any) -> None:
        if "texts" in command.paths:
            raise LonasEdgeError("no memory")
        own_baseline(command, guards)

    monkeypatch.setattr(baselines, "run_optimum", failing)
    monkeypatch.setattr(baselines, "_SHARE", 1.0)
    record = compressed(llama, tmp_path, data)

    assert [network.name for network in record.networks] == [INT8, INT8 + GROUP, "compressed INT8"]
    assert any("GPTQ of optimum-intel failed: no memory" in each for each in record.warnings)
