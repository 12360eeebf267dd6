"""What is exported and measured in the end: which networks, where they are, prediction beside measurement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import TinySource

from lonas_edge.bench.latency import Latency
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions
from lonas_edge.network.source import Source
from lonas_edge.search import measured as module
from lonas_edge.search import timed
from lonas_edge.search.latency_table import open_table
from lonas_edge.search.measured import measure_front, spread
from lonas_edge.search.record import Evaluation
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.space.subnetwork import Subnetwork


class Device:
    """In place of exports and measurements: a network takes a millisecond a channel of its MLPs, and what was made."""

    def __init__(self) -> None:
        self.exported: list[tuple[Path, ExportOptions, str]] = []
        self.slower = 1.0

    def export(self, _source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
        self.exported.append((folder, options, subnetwork.name))
        folder.mkdir(parents=True)
        (folder / "made_up.json").write_text(json.dumps(sum(width for width in subnetwork.widths if width > 8)))

    def measure(self, irs: Sequence[tuple[Path, Mapping[str, str]]], *_: object) -> list[Latency]:
        took = [json.loads((folder / "made_up.json").read_text()) * self.slower / 1e3 for folder, _ in irs]
        return [Latency(one, one / 10) for one in took]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A made-up device."""
    made = Device()
    for where in (timed, module):
        monkeypatch.setattr(where, "export_apart", made.export)
    monkeypatch.setattr(timed, "ir_latencies", made.measure)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> CostSettings:
    """A prompt of 16 tokens, and a cache of the test's own."""
    return CostSettings(prompt_len=16, new_tokens=8, weight_formats=("int8",), cache=tmp_path / "cache", threads=1)


def evaluated(source: TinySource, *names: str, weight_format: str = "int8") -> list[tuple[str, Evaluation]]:
    """Networks by name, as evaluations."""
    space = source.opened().space
    widths = [space.preset(name) for name in names]
    return [(names[n], Evaluation(n + 10, own, weight_format, 0.0, 0.0, 0.0, "")) for n, own in enumerate(widths)]


def test_members_of_a_front_are_spread_over_it() -> None:
    front = [Evaluation(n, (), "int8", 0, 0, 0, "") for n in range(30)]
    assert [one.number for one in spread(front)] == [0, 4, 8, 12, 17, 21, 25, 29]
    assert spread(front[:8]) == front[:8] and [one.number for one in spread(front, 2)] == [0, 29]


def test_prediction_beside_measurement(llama: TinySource, device: Device, settings: CostSettings, tmp_path: Path) -> None:
    """Measured when all takes a tenth longer than when the table was made."""
    opened, members = llama.opened(), evaluated(llama, "maximal", "heuristic", "random:3")
    table = open_table(opened, settings)
    device.slower = 1.1
    found = measure_front(opened, members, settings, tmp_path)
    assert [(one.name, one.evaluation, one.weight_format) for one in found] == [
        ("maximal", 10, "int8"),
        ("heuristic", 11, "int8"),
        ("random:3", 12, "int8"),
    ]
    for one, (_, network) in zip(found, members, strict=True):
        channels = sum(width for width in network.widths if width > 8)
        assert (one.predicted_ttft, one.predicted_tpot) == pytest.approx((channels, channels / 10))
        assert (one.ttft, one.tpot) == pytest.approx((1.1 * channels, 0.11 * channels))
    other = replace(table, formats={})
    [alone] = measure_front(opened, members[:1], settings, tmp_path, table=other)
    assert (alone.predicted_ttft, alone.predicted_tpot) == (None, None)


def test_what_is_kept_is_verified_and_the_rest_is_gone(
    llama: TinySource, device: Device, settings: CostSettings, tmp_path: Path
) -> None:
    opened, output = llama.opened(), tmp_path / "out"
    (output / ".measured-killed").mkdir(parents=True)
    open_table(opened, settings)
    device.exported.clear()
    members = evaluated(llama, "maximal", "heuristic", "random:3", "random:4")
    measure_front(opened, members, settings, output, keep=["random:4"])
    [(scratch, options, _), (kept, verified, name)] = device.exported  # maximal and heuristic are there from the table
    assert not options.verify and not scratch.exists() and scratch.parent.parent == output
    assert (kept, name, verified.verify, verified.overwrite) == (output / "exported" / "random:4", "random:4", True, True)
    assert sorted(path.name for path in output.iterdir()) == ["exported"] and kept.exists()


def test_there_need_be_no_table(llama: TinySource, device: Device, settings: CostSettings, tmp_path: Path) -> None:
    [found] = measure_front(llama.opened(), evaluated(llama, "minimal"), settings, tmp_path)
    assert found.tpot == pytest.approx(3 * 6.4) and found.predicted_tpot is None


def test_an_unknown_device_is_refused(llama: TinySource, device: Device, settings: CostSettings, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="--device TPU: not on this machine"):
        measure_front(llama.opened(), evaluated(llama, "minimal"), replace(settings, device="TPU"), tmp_path)
    assert not device.exported


def test_a_pick_for_real(llama: TinySource, settings: CostSettings, tmp_path: Path) -> None:
    settings = replace(settings, rounds=1, starts=1)
    [found] = measure_front(llama.opened(), evaluated(llama, "minimal"), settings, tmp_path, keep=["minimal"])
    manifest = json.loads((tmp_path / "exported/minimal/lonas_edge.json").read_text())
    assert manifest["verified"] and manifest["weight_format"] == "int8" and found.ttft > 0
