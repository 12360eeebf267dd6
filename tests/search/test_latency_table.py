"""The latency table, with made-up latencies: what is measured, what follows for other networks, when it is used again."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.bench import machine
from lonas_edge.bench.latency import Latency
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.variants import Case
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions
from lonas_edge.exporting.exported import open_exported
from lonas_edge.network.source import Source
from lonas_edge.search import timed
from lonas_edge.search.cost import cost_function
from lonas_edge.search.latency_table import LatencyTable, kept_table, open_table
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.search.uniform import Kind, find_kinds, uniform_networks
from lonas_edge.space.search_space import Group, Member, SearchSpace
from lonas_edge.space.subnetwork import Subnetwork

FIRST, EACH = 0.010, {128: 0.0050, 96: 0.0052, 64: 0.0021}  # a device that dislikes 96: seconds of TTFT; TPOT is a tenth


def seconds(mlp: Sequence[int], weight_format: str) -> float:
    """What the made-up device takes."""
    return (FIRST + sum(EACH[width] for width in mlp)) * (0.6 if weight_format == "int4" else 1)


class Device:
    """In place of exports and measurements; what was asked of it."""

    def __init__(self) -> None:
        self.exported: list[tuple[tuple[int, ...], str]] = []
        self.runs: list[list[tuple[str, Mapping[str, str]]]] = []
        self.asked: list[tuple[object, ...]] = []

    def export(self, _source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
        self.exported.append((subnetwork.widths, options.weight_format))
        folder.mkdir(parents=True)
        mlp = [width for width in subnetwork.widths if width > 8]
        (folder / "made_up.json").write_text(json.dumps([mlp, options.weight_format]))

    def measure(self, irs: Sequence[tuple[Path, Mapping[str, str]]], *asked: object) -> list[Latency]:
        self.runs.append([(folder.name, properties) for folder, properties in irs])
        self.asked.append(asked)
        took = [seconds(*json.loads((folder / "made_up.json").read_text())) for folder, _ in irs]
        return [Latency(one, one / 10) for one in took]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A made-up device."""
    made = Device()
    monkeypatch.setattr(timed, "export_apart", made.export)
    monkeypatch.setattr(timed, "ir_latencies", made.measure)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> CostSettings:
    """A prompt of 16 tokens, and a cache of the test's own."""
    return CostSettings(prompt_len=16, new_tokens=8, weight_formats=("int8",), cache=tmp_path / "cache", threads=1)


class Told(list[str]):
    """What is being done."""

    def __call__(self, what: str, _done: float | None) -> None:
        self.append(what)


def test_every_network_adds_up_from_the_uniform_ones(llama: TinySource, device: Device, settings: CostSettings) -> None:
    opened, maximal = llama.opened(), [values[0] for values in llama.groups()]
    settings = replace(settings, weight_formats=("int8", "int4"))
    costs = {metric: cost_function(metric, opened, settings) for metric in ("ttft", "tpot")}
    assert [(sorted(widths, reverse=True)[:LAYERS], name) for widths, name in device.exported] == [
        ([width] * LAYERS, name) for name in ("int8", "int4") for width in (128, 96, 64)
    ]
    assert all(width in (8, 128, 96, 64) for widths, _ in device.exported for width in widths)  # ranks at their widest
    assert len(device.runs) == 1 and len(device.runs[0]) == 6  # both formats in one run, for both metrics
    mlp = [index for index, width in enumerate(maximal) if width == 128]
    for widths in itertools.product(EACH, repeat=LAYERS):
        network = list(maximal)
        for index, width in zip(mlp, widths, strict=True):
            network[index] = width
        for name in settings.weight_formats:
            assert costs["ttft"](network, name) == pytest.approx(1e3 * seconds(widths, name))
            assert costs["tpot"](network, name) == pytest.approx(1e2 * seconds(widths, name))


def test_how_it_is_measured(llama: TinySource, device: Device, settings: CostSettings) -> None:
    table = open_table(llama.opened(), replace(settings, weight_formats=("fp16", "int8"), rounds=5, starts=2))
    [(case, schedule, where, threads, _progress)] = device.asked
    assert (case, schedule, where, threads) == (Case(16, 8), Schedule(5, 2, 1), "CPU", 1)
    assert [properties["KV_CACHE_PRECISION"] for _, properties in device.runs[0]] == ["f16"] * 3 + ["u8"] * 3
    assert (table.rounds, table.starts) == (5, 2)
    assert {name: one.properties for name, one in table.formats.items()} == {
        "fp16": {"KV_CACHE_PRECISION": "f16"},
        "int8": {"KV_CACHE_PRECISION": "u8"},
    }


def test_it_is_used_again(llama: TinySource, tiny_models: TinyModels, device: Device, settings: CostSettings) -> None:
    """For another adapter, too: what the weights are does not matter."""
    told = Told()
    opened, first = llama.opened(), open_table(llama.opened(), settings)
    assert kept_table(opened, settings) == first
    assert open_table(opened, settings, told) == first and len(device.runs) == 1
    assert f"The latency table of {first.date} is used again" in told[-1]
    other = replace(llama, adapter=tiny_models.adapter("llama", lora_alpha=4)).opened()
    assert open_table(other, settings) == first and len(device.runs) == 1


def test_another_format_is_measured_with_those_that_are_there(
    llama: TinySource, device: Device, settings: CostSettings
) -> None:
    opened = llama.opened()
    open_table(opened, settings)
    both = open_table(opened, replace(settings, weight_formats=("int4",)))
    assert list(both.formats) == ["int8", "int4"] and len(device.runs[1]) == 6
    assert len(device.exported) == 6  # the networks of the first are kept
    assert open_table(opened, settings) == both and len(device.runs) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_len": 24},
        {"new_tokens": 4},
        {"batch_size": 2},
        {"threads": 2},
        {"machine": {"processor": "another"}},
        {"machine": {"instructions": ["another"]}},
        {"versions": {}},
        {"graph": 3},
    ],
)
def test_it_is_not_used_for_anything_else(
    change: dict[str, object], llama: TinySource, device: Device, settings: CostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, first = llama.opened(), open_table(llama.opened(), settings)
    if "machine" in change:
        here = machine.describe("CPU")
        monkeypatch.setattr(machine, "describe", lambda _: here | change["machine"])
    elif "graph" in change:
        for module in ("latency_table", "timed"):
            monkeypatch.setattr(f"lonas_edge.search.{module}.GRAPH", change["graph"])
    elif "versions" in change:
        monkeypatch.setattr("lonas_edge.search.latency_table.used_versions", lambda: {"openvino": "another"})
    else:
        settings = replace(settings, **change)
    assert kept_table(opened, settings) is None
    assert open_table(opened, settings).identity != first.identity and len(device.runs) == 2
    assert len(device.exported) == (6 if "graph" in change else 3)  # what was exported before is another graph
    assert len(list((settings.cache or Path()).glob("latency-table-*.json"))) == 2


def test_a_copied_file_of_another_identity_is_not_believed(llama: TinySource, device: Device, settings: CostSettings) -> None:
    opened, first = llama.opened(), open_table(llama.opened(), settings)
    [file] = (settings.cache or Path()).glob("latency-table-*.json")
    replace(first, identity=replace(first.identity, processor="another")).write(file)
    assert open_table(opened, settings).identity == first.identity and len(device.runs) == 2


@pytest.mark.parametrize("damage", ['{"schema": "lonas-edge/latency-table/1", "formats": {}}', '{"schema": "lonas-'])
def test_a_damaged_table_is_told_and_measured_again(
    damage: str, llama: TinySource, device: Device, settings: CostSettings
) -> None:
    opened, first, told = llama.opened(), open_table(llama.opened(), settings), Told()
    [file] = (settings.cache or Path()).glob("latency-table-*.json")
    file.write_text(damage)
    again = open_table(opened, settings, told)
    assert again.formats == first.formats and len(device.runs) == 2
    assert str(file) in told[0] and "It is measured again.\n" in told[0]
    assert LatencyTable.read(file) == again


def test_refused_before_anything_is_measured(llama: TinySource, device: Device, settings: CostSettings) -> None:
    opened = llama.opened()
    with pytest.raises(LonasEdgeError, match="120\\+16 tokens are longer than the model's context of 128"):
        open_table(opened, replace(settings, prompt_len=120, new_tokens=16))
    ranks = tuple(group for group in opened.space.groups if group.kind == "rank")
    alone = replace(opened, elasticity=replace(opened.elasticity, space=SearchSpace(ranks)))
    with pytest.raises(LonasEdgeError, match="no width that a latency depends on"):
        open_table(alone, settings)
    assert not device.exported and not (settings.cache or Path()).exists()


def test_groups_of_columns_that_depend_on_the_width_are_told(llama: TinySource, device: Device, settings: CostSettings) -> None:
    """64 and 128 are multiples of 64, 96 is one of 32 only; INT8 has no groups of columns."""
    told = Told()
    open_table(llama.opened(), settings, told)
    assert "columns" not in "".join(told)
    open_table(llama.opened(), replace(settings, weight_formats=("int4",)), told)
    assert "int4: networks of equal widths have groups of 32, 64 columns" in "".join(told)


def two_kinds(source: Source) -> Source:
    """A space whose first group has two layers' MLPs, and another one narrower widths; and heads that are no dimension."""
    ranks = [group for group in source.space.groups if group.kind == "rank"]
    mlp = [group for group in source.space.groups if group.kind == "width"]
    both = Group((*mlp[0].members, *mlp[1].members), (128, 96))
    heads = [Group((Member(f"model.layers.{n}.self_attn.q_proj", "base", ""),), (64, 32)) for n in (0, 2)]
    space = SearchSpace((ranks[0], both, replace(mlp[2], widths=(96, 64)), *heads))
    return replace(source, elasticity=replace(source.elasticity, space=space))


def test_kinds_and_networks_by_hand(llama: TinySource) -> None:
    source = two_kinds(llama.opened())
    kinds = find_kinds(source)
    mlp = "mlp.gate_proj, mlp.up_proj"
    assert kinds == (Kind(mlp, {1: 2, 2: 1}, (128, 96, 64)), Kind("self_attn.q_proj", {3: 1, 4: 1}, (64, 32)))
    assert uniform_networks(source, kinds) == {
        (mlp, 128): (8, 128, 128, 64, 64),
        (mlp, 96): (8, 96, 96, 64, 64),
        (mlp, 64): (8, 64, 64, 64, 64),
        ("self_attn.q_proj", 64): (8, 128, 128, 64, 64),
        ("self_attn.q_proj", 32): (8, 128, 128, 32, 32),
    }


def test_prediction_by_hand(llama: TinySource, device: Device, settings: CostSettings) -> None:
    """Two layers in one group, other widths in another, a kind of layers beside them; between two widths on the line."""
    from lonas_edge.search.latency_table import Curve, FormatTable

    kinds = find_kinds(two_kinds(llama.opened()))
    curves = {
        "mlp.gate_proj, mlp.up_proj": Curve((128, 96, 64), (30.0, 27.0, 21.0), (3.0, 2.7, 2.1)),
        "self_attn.q_proj": Curve((64, 32), (30.0, 26.0), (3.0, 2.8)),
    }
    table = replace(open_table(llama.opened(), settings), formats={"int8": FormatTable({}, curves)})

    def predicted(*widths: int) -> float:
        return table.predict("ttft", kinds, widths, "int8")

    assert predicted(8, 128, 128, 64, 64) == pytest.approx(30)
    assert predicted(6, 96, 64, 64, 32) == pytest.approx(30 - 3 * 2 / 3 - 9 / 3 - 4 / 2)
    assert predicted(8, 128, 80, 64, 64) == pytest.approx(30 - 6 / 3)  # 80 lies between 96 and 64: 24
    assert table.predict("tpot", kinds, (8, 64, 64, 32, 32), "int8") == pytest.approx(3 - 0.9 - 0.2)
    with pytest.raises(LonasEdgeError, match=r"has no int8 networks of other widths of self_attn\.q_proj"):
        replace(table, formats={"int8": FormatTable({}, {kinds[0].name: curves[kinds[0].name]})}).predict(
            "ttft", kinds, (8, 128, 128, 64, 64), "int8"
        )


def test_many_widths_are_thinned(llama: TinySource) -> None:
    source = llama.opened()
    [first, *others] = [group for group in source.space.groups if group.kind == "width"]
    fine = replace(first, widths=tuple(range(128, 63, -4)))
    space = SearchSpace((fine, *others))
    [kind] = find_kinds(replace(source, elasticity=replace(source.elasticity, space=space)))
    assert len(kind.widths) == 9 and (kind.widths[0], kind.widths[-1]) == (128, 64) and kind.widths[1] == 120


def test_for_real(llama: TinySource, settings: CostSettings) -> None:
    """Exports in processes of their own, and a real measurement; what it gives is asked for no more than to be there."""
    opened = llama.opened()
    table = open_table(opened, replace(settings, rounds=1, starts=1))
    folders = sorted((settings.cache or Path()).glob("latency-*/lonas_edge.json"))
    assert sorted({size for file in folders for size in [open_exported(file.parent).config["intermediate_size"]]}) == [
        64,
        96,
        128,
    ]
    heuristic = opened.select("heuristic").widths
    assert table.predict("tpot", find_kinds(opened), heuristic, "int8") > 0
