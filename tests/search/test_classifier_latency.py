"""The latency of classifiers with artificial times: measurements, a search, refusals."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from device import Device
from test_glue_search import write_set
from tiny_bert import TinyBert
from tiny_models import LAYERS, TinySource

from lonas_edge.bench import machine
from lonas_edge.bench.measure import Schedule
from lonas_edge.search import timed
from lonas_edge.search.cost import CostSettings, cost_function
from lonas_edge.search.latency_table import open_table

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
    monkeypatch.setattr(timed, "export_apart", made.export)
    monkeypatch.setattr(timed, "ir_latencies", made.measure)
    for module in ("latency_table", "measured"):
        monkeypatch.setattr(f"lonas_edge.search.{module}.cache_of", lambda _: tmp_path / "cache")
    return made


@pytest.fixture
def bert(tiny_bert: TinyBert) -> TinySource:
    """The tiny classifier of two classes."""
    return tiny_bert.source(2)


def test_latencies_add_up(bert: TinySource, device: Device) -> None:
    """The kinds are heads and MLPs; ranks are at their widest. A classifier has no KV cache."""
    settings = CostSettings("int8", prompt_len=16, new_tokens=0, threads=1, batch_size=4)
    cost = cost_function("latency", bert.opened(), settings, open_table(bert.opened(), settings))
    heads = [(*[width] * LAYERS, *[8] * LAYERS, *[128] * LAYERS) for width in HEADS]
    mlps = [(*[64] * LAYERS, *[8] * LAYERS, *[width] * LAYERS) for width in MLPS]
    assert {widths for widths, _, _ in device.exported} == {*heads, *mlps} and len(device.exported) == 5
    [(case, schedule, where, threads, _progress)] = device.arguments
    assert (case, schedule, where, threads) == (settings.case, Schedule(12, 4, 1), "CPU", 1)
    assert device.runs == [[{}] * 5]
    for widths in ((64, 48, 32, 6, 8, 6, 128, 96, 64), (32, 32, 64, 8, 8, 8, 64, 64, 96)):
        assert cost(widths) == pytest.approx(1e3 * seconds(widths))


def test_a_search(bert: TinySource, device: Device, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By latency, the default; the measurement at the end is a tenth slower."""
    command = [
        *("search", *bert.arguments(), "--data", write_set(tmp_path, "RTE"), "--output", tmp_path / "out"),
        *("--batch-size", 2, "--num-prompts", 8, "--evals", 12, "--pick", "latency<=0.7x", "--weight-format", "int8"),
    ]
    device.slower_later = 1.1
    ran = run_cli(*command, "--json")
    assert ran.code == 0 and "latency table" not in ran.err, ran.err
    record = json.loads(ran.out)
    assert [str(arguments[0]) for arguments in device.arguments] == ["64 tokens, batch 2"] * 2, "no longer than the context"
    assert record["units"] == {"kl": "nats", "latency": "ms"}
    evaluations = record["evaluations"]
    for evaluation in evaluations:
        assert evaluation["cost"] == pytest.approx(1e3 * seconds(evaluation["widths"]))
    bound = 0.7e3 * seconds([64] * LAYERS + [8] * LAYERS + [128] * LAYERS)
    (picked,) = record["picks"]
    best = evaluations[picked["evaluation"]]
    under = [evaluation["quality"] for evaluation in evaluations if evaluation["cost"] <= bound]
    assert picked["file"] == "latency-0.7x" and best["cost"] <= bound and best["quality"] == min(under)
    assert {0, picked["evaluation"]} <= {network["evaluation"] for network in record["measured"]}
    for network in record["measured"]:
        expected = 1e3 * seconds(evaluations[network["evaluation"]]["widths"])
        assert (network["latency"], network["predicted_latency"]) == pytest.approx((1.1 * expected, expected))
        assert (network["ttft"], network["tpot"], network["predicted_tpot"]) == (None, None, None)
    date = json.loads((tmp_path / "out" / "latency_table.json").read_text())["date"]
    continued = run_cli(*command, "--evals", 13)
    assert f"Reusing the latency table of this search, measured on {date}\n" in continued.err
    table = json.loads((tmp_path / "out" / "latency_table.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_processor", lambda: "Another")
        ran = run_cli(*command, "--evals", 14, "--json")
    moved = json.loads(ran.out)
    assert f"measured on {date}, on another machine ({table['identity']['processor']})\n" in ran.err
    assert moved["conditions"]["processor"] == table["identity"]["processor"], "the costs are those of that machine"
    assert not moved["measured"] and "Nothing is measured: the costs are latencies of another machine" in ran.err
    [file] = (tmp_path / "cache").glob("latency-table-*.json")
    other = run_cli(*command, "--evals", 5, "--no-measure", "--output", tmp_path / "other")
    assert f"Reusing the latency table of {date}: {file}. Delete the file to measure again.\n" in other.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--cost", "tpot"], 1, "--cost tpot: a sequence classifier generates no tokens; use --cost latency"),
        (["--new-tokens", "8"], 2, "--new-tokens: no effect, a sequence classifier has no prompts"),
        (["--cost", "macs", "--pick", "latency<=0.7x"], 1, "latency is not measured here; expected one of kl, "),
        (["--cost", "macs", "--measure", "--prompt-len", "65"], 1, "--prompt-len 65: beyond the model's context of 64 tokens"),
        (["--prompt-len", "65"], 1, "--prompt-len 65: beyond the model's context of 64 tokens"),
    ],
)
def test_refused(
    options: list[str], code: int, message: str, bert: TinySource, device: Device, run_cli: Callable, tmp_path: Path
) -> None:
    data = write_set(tmp_path, "RTE")
    ran = run_cli("search", *bert.arguments(), "--data", data, "--output", tmp_path / "out", "--num-prompts", 8, *options)
    assert ran.code == code and message in " ".join(ran.err.split()), ran.err
    assert not device.exported and not list(tmp_path.glob("out*"))
