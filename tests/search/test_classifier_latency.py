"""Search of classifiers by the latency of a pass: the table, what follows from it, prediction beside measurement, bad input."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from test_glue_search import write_set
from tiny_bert import LAYERS, TinyBert
from tiny_models import TinySource

from lonas_edge.bench.latency import Latency
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.variants import Case
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import Source
from lonas_edge.search import timed
from lonas_edge.search.cost import cost_function
from lonas_edge.search.latency_table import open_table
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.space.subnetwork import Subnetwork

HEADS, MLPS = {64: 0.004, 48: 0.0031, 32: 0.0024}, {128: 0.0050, 96: 0.0052, 64: 0.0021}  # of a layer: seconds
FIRST = 0.003


def seconds(widths: Sequence[int], weight_format: str) -> float:
    """What the made-up device takes: three groups of heads, of ranks, of MLPs."""
    heads, mlps = widths[:LAYERS], widths[2 * LAYERS :]
    took = FIRST + sum(HEADS[width] for width in heads) + sum(MLPS[width] for width in mlps)
    return took * (0.6 if weight_format == "int4" else 1)


class Device:
    """In place of exports and measurements; what was asked of it."""

    def __init__(self) -> None:
        self.exported: list[tuple[tuple[int, ...], str]] = []
        self.runs: list[list[Mapping[str, str]]] = []
        self.asked: list[tuple[object, ...]] = []
        self.slower = 1.0

    def export(self, _source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
        self.exported.append((subnetwork.widths, options.weight_format))
        folder.mkdir(parents=True)
        (folder / "made_up.json").write_text(json.dumps([subnetwork.widths, options.weight_format]))

    def measure(self, irs: Sequence[tuple[Path, Mapping[str, str]]], *asked: object) -> list[Latency]:
        self.runs.append([properties for _, properties in irs])
        self.asked.append(asked)
        took = [seconds(*json.loads((folder / "made_up.json").read_text())) for folder, _ in irs]
        slower = self.slower if len(self.runs) > 1 else 1.0
        return [Latency(latency=one * slower) for one in took]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    """A made-up device, and a cache of the test's own."""
    made = Device()
    monkeypatch.setattr(timed, "export_apart", made.export)
    monkeypatch.setattr(timed, "ir_latencies", made.measure)
    for module in ("latency_table", "measured"):
        monkeypatch.setattr(f"lonas_edge.search.{module}.cache_of", lambda _: tmp_path / "cache")
    return made


@pytest.fixture
def bert(tiny_bert: TinyBert) -> TinySource:
    """The tiny classifier of two classes."""
    return tiny_bert.source(2)


def test_every_network_adds_up_from_the_uniform_ones(bert: TinySource, device: Device) -> None:
    """Heads and MLPs are the kinds; ranks are at their widest. One pass a text, no cache whose precision is to be told."""
    settings = CostSettings(prompt_len=16, new_tokens=0, weight_formats=("int8", "int4"), threads=1, batch_size=4)
    cost = cost_function("latency", bert.opened(), settings)
    heads = [(*[width] * LAYERS, *[8] * LAYERS, *[128] * LAYERS) for width in HEADS]
    mlps = [(*[64] * LAYERS, *[8] * LAYERS, *[width] * LAYERS) for width in MLPS]
    assert {widths for widths, _ in device.exported} == {*heads, *mlps} and len(device.exported) == 2 * 5
    [(case, schedule, where, threads, _progress)] = device.asked
    assert (case, schedule, where, threads) == (Case(16, 0, 4), Schedule(12, 4, 1), "CPU", 1)
    assert device.runs == [[{}] * 10]
    for widths in itertools.product(*([HEADS] * LAYERS), [6], [8], [6], *([MLPS] * LAYERS)):
        for weight_format in ("int8", "int4"):
            assert cost(widths, weight_format) == pytest.approx(1e3 * seconds(widths, weight_format))


def test_a_search(bert: TinySource, device: Device, run_cli: Callable, tmp_path: Path) -> None:
    """By the table, then measured, when all takes a tenth longer; a pick is under its bound."""
    command = [
        *("search", *bert.arguments(), "--data", write_set(tmp_path, "RTE"), "--output", tmp_path / "out"),
        *("--cost", "latency", "--batch-size", 2, "--val-set-size", 8, "--evals", 12, "--population", 4),
        *("--pick", "latency<=0.7x"),
    ]
    assert run_cli(*command, "--dry-run", "--json").code == 0 and not device.exported
    device.slower = 1.1
    ran = run_cli(*command, "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert [asked[0] for asked in device.asked] == [Case(64, 0, 2)] * 2  # no longer than the context
    assert record["units"] == {"kl": "nats", "latency": "ms"}
    evaluations = record["evaluations"]
    for one in evaluations:
        assert one["cost"] == pytest.approx(1e3 * seconds(one["widths"], "int8"))
    whole = 1e3 * seconds([64] * LAYERS + [8] * LAYERS + [128] * LAYERS, "int8")
    (picked,) = record["picks"]
    best = evaluations[picked["evaluation"]]
    under = [one["quality"] for one in evaluations if one["cost"] <= 0.7 * whole]
    assert picked["file"] == "latency-0.7x" and best["cost"] <= 0.7 * whole and best["quality"] == min(under)
    measured = {one["evaluation"]: one for one in record["measured"]}
    assert {0, picked["evaluation"]} <= measured.keys()
    for number, one in measured.items():
        expected = 1e3 * seconds(evaluations[number]["widths"], "int8")
        assert (one["latency"], one["predicted_latency"]) == pytest.approx((1.1 * expected, expected))
        assert (one["ttft"], one["tpot"], one["predicted_tpot"]) == (None, None, None)
    shown = run_cli(*command)  # goes on with what is there
    assert shown.code == 0, shown.err
    told = " ".join(shown.out.split())
    assert "latency ms" in told and "TPOT" not in told and "64 tokens, batch 2" in told


def test_macs_and_measured(bert: TinySource, device: Device, run_cli: Callable, tmp_path: Path) -> None:
    """A front by MACs is measured, too, with no table to foretell it."""
    ran = run_cli(
        *("search", *bert.arguments(), "--data", write_set(tmp_path, "RTE"), "--output", tmp_path / "out", "--measure"),
        *("--val-set-size", 8, "--evals", 6, "--population", 4, "--prompt-len", 32, "--json"),
    )
    assert ran.code == 0, ran.err
    measured = json.loads(ran.out)["measured"]
    assert [asked[0] for asked in device.asked] == [Case(32, 0)]
    assert measured and all(one["latency"] > 0 and one["predicted_latency"] is None for one in measured)


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--cost", "tpot"], 1, "--cost tpot: a sequence classifier generates no tokens; its times are --cost latency"),
        (["--cost", "ttft"], 1, "--cost ttft: a sequence classifier generates no tokens; its times are --cost latency"),
        (["--cost", "latency", "--new-tokens", "8"], 2, "--new-tokens does nothing: a classifier generates none"),
        (["--batch-size", "8"], 2, "--batch-size: does nothing: no latency is measured"),
        (["--pick", "latency<=0.7x"], 1, "latency is not measured; this search has kl, macs"),
        (["--cost", "latency", "--prompt-len", "65"], 1, "65 tokens are longer than the model's context of 64"),
    ],
)
def test_what_is_refused(
    options: list[str], code: int, told: str, bert: TinySource, device: Device, run_cli: Callable, tmp_path: Path
) -> None:
    data = write_set(tmp_path, "RTE")
    ran = run_cli("search", *bert.arguments(), "--data", data, "--output", tmp_path / "out", "--val-set-size", 8, *options)
    assert ran.code == code and told in " ".join(ran.err.split()), ran.err
    assert not device.exported and "Choose a shorter --prompt-len or" not in ran.err


def test_a_language_model_has_other_times(llama: TinySource, data: Path, run_cli: Callable, tmp_path: Path) -> None:
    ran = run_cli("search", *llama.arguments(), "--data", data, "--output", tmp_path / "out", "--cost", "latency")
    assert ran.code == 1 and not (tmp_path / "out").exists()
    told = "--cost latency: a causal language model generates tokens; its times are --cost ttft and --cost tpot"
    assert told in " ".join(ran.err.split())


def test_for_real(bert: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real measurement; what it gives is asked for no more than to be there. Exports apart: `test_latency_table`."""
    monkeypatch.setattr(timed, "export_apart", export)
    settings = CostSettings(prompt_len=16, new_tokens=0, cache=tmp_path / "cache", threads=1, rounds=1, starts=1)
    table = open_table(bert.opened(), settings)
    curves = table.formats["int8_sym"].curves
    assert sorted(len(curve.latency) for curve in curves.values()) == [3, 3]
    assert all(one > 0 for curve in curves.values() for one in curve.latency)
    assert open_table(bert.opened(), settings) == table
