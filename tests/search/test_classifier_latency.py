"""The latency of classifiers with artificial times: measurements, a search, refusals."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from device import Device
from test_glue_search import write_set
from tiny_bert import TinyBert
from tiny_models import LAYERS, TinySource

HEADS, MLPS = {64: 0.004, 48: 0.0031, 32: 0.0024}, {128: 0.0050, 96: 0.0052, 64: 0.0021}  # of a layer: seconds
FIRST = 0.003


def seconds(widths: Sequence[int]) -> float:
    """Latency of a network: groups of heads, of ranks, of MLPs."""
    heads, mlps = widths[:LAYERS], widths[2 * LAYERS :]
    return FIRST + sum(HEADS[width] for width in heads) + sum(MLPS[width] for width in mlps)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    """An artificial device, and a temporary cache."""
    made = Device(seconds, classifier=True)
    made.install(monkeypatch, tmp_path / "cache")
    return made


@pytest.fixture
def bert(tiny_bert: TinyBert) -> TinySource:
    """The tiny classifier of two classes."""
    return tiny_bert.source(2)


def test_a_search(bert: TinySource, device: Device, run_cli: Callable, tmp_path: Path) -> None:
    """By latency, the default; another search of the model reuses the table, and so does the continued one."""
    command = [
        *("search", *bert.arguments(), "--data", write_set(tmp_path, "RTE"), "--output", tmp_path / "out"),
        *("--num-samples", 8, "--evals", 12, "--pick", "latency<=0.7x", "--weight-format", "int8"),
    ]
    run_cli(*command).ok()
    record = json.loads((tmp_path / "out/search.json").read_text())
    assert [str(arguments[0]) for arguments in device.arguments] == ["64 tokens"], "no longer than the context"
    assert record["units"] == {"kl": "nats", "latency": "ms"}
    evaluations = record["evaluations"]
    for evaluation in evaluations:
        assert evaluation["cost"] == pytest.approx(1e3 * seconds(evaluation["widths"]))
    bound = 0.7e3 * seconds([64] * LAYERS + [8] * LAYERS + [128] * LAYERS)
    (picked,) = record["picks"]
    best = evaluations[picked["evaluation"]]
    under = [evaluation["quality"] for evaluation in evaluations if evaluation["cost"] <= bound]
    assert picked["file"] == "latency-0.7x" and best["cost"] <= bound and best["quality"] == min(under)
    table = json.loads((tmp_path / "out" / "latency_table.json").read_text())
    assert run_cli(*command, "--evals", 13).code == 0 and len(device.runs) == 1
    [file] = (tmp_path / "cache").glob("latency-table-*.json")
    other = run_cli(*command, "--evals", 5, "--output", tmp_path / "other")
    assert f"Reusing the latency table of {table['date']}: {file}. Delete the file to measure again.\n" in other.err
