"""The latency table with artificial latencies: measurements, predictions, reuse."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from device import Device
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.bench import machine
from lonas_edge.bench.measure import Schedule
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import Source
from lonas_edge.search import timed
from lonas_edge.search.cost import CostSettings, cost_function
from lonas_edge.search.latency_table import LatencyTable, open_table
from lonas_edge.search.measured import measure_front, spread
from lonas_edge.search.record import Evaluation
from lonas_edge.search.uniform import Kind, find_kinds, uniform_networks
from lonas_edge.space.search_space import Group, Member, SearchSpace

FIRST, EACH = 0.010, {128: 0.0050, 96: 0.0052, 64: 0.0021}  # a device that is slow with 96: seconds of TTFT


def seconds(widths: Sequence[int]) -> float:
    """TTFT of a network."""
    return FIRST + sum(EACH[width] for width in widths if width > 8)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """An artificial device."""
    made = Device(seconds)
    monkeypatch.setattr(timed, "export_apart", made.export)
    monkeypatch.setattr(timed, "ir_latencies", made.measure)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> CostSettings:
    """A prompt of 16 tokens, and a temporary cache."""
    return CostSettings("int8", prompt_len=16, new_tokens=8, cache=tmp_path / "cache", threads=1)


class Messages(list[str]):
    """Collects the progress messages."""

    def __call__(self, what: str, _done: float | None) -> None:
        self.append(what)


def test_latencies_add_up(llama: TinySource, device: Device, settings: CostSettings) -> None:
    opened, maximal = llama.opened(), [values[0] for values in llama.groups()]
    table = open_table(opened, settings)
    costs = {metric: cost_function(metric, opened, settings, table) for metric in ("ttft", "tpot", "end-to-end")}
    assert [sorted(widths, reverse=True)[:LAYERS] for widths, _, _ in device.exported] == [[w] * LAYERS for w in (128, 96, 64)]
    assert all(width in (8, 128, 96, 64) for widths, _, _ in device.exported for width in widths), "ranks at their widest"
    assert len(device.runs) == 1 and len(device.runs[0]) == 3, "one run, for both metrics"
    mlp = [index for index, width in enumerate(maximal) if width == 128]
    for chosen in itertools.product(EACH, repeat=LAYERS):
        network = list(maximal)
        for index, width in zip(mlp, chosen, strict=True):
            network[index] = width
        assert costs["ttft"](network) == pytest.approx(1e3 * seconds(chosen))
        assert costs["tpot"](network) == pytest.approx(1e2 * seconds(chosen))
        assert costs["end-to-end"](network) == pytest.approx((1e3 + 7 * 1e2) * seconds(chosen)), "8 tokens, 7 after the first"


@pytest.mark.parametrize(("weight_format", "cached"), [("fp16", "f16"), ("int8", "u8")])
def test_the_measurement(weight_format: str, cached: str, llama: TinySource, device: Device, settings: CostSettings) -> None:
    open_table(llama.opened(), replace(settings, weight_format=weight_format, rounds=5, starts=2))
    [(case, schedule, where, threads, _progress)] = device.arguments
    assert (case, schedule, where, threads) == (settings.case, Schedule(5, 2, 1), "CPU", 1)
    assert device.runs == [[{"KV_CACHE_PRECISION": cached}] * 3]
    assert {name for _, name, _ in device.exported} == {weight_format}


def test_it_is_reused(llama: TinySource, tiny_models: TinyModels, device: Device, settings: CostSettings) -> None:
    """Also for another adapter: the values of weights do not matter."""
    messages, first = Messages(), open_table(llama.opened(), settings)
    assert open_table(llama.opened(), settings, messages) == first and len(device.runs) == 1
    [file] = (settings.cache or Path()).glob("latency-table-*.json")
    assert f"Reusing the latency table of {first.date}: {file}. Delete the file to measure again.\n" in messages[-1]
    other = replace(llama, adapter=tiny_models.adapter("llama", lora_alpha=4)).opened()
    assert open_table(other, settings) == first and len(device.runs) == 1


@pytest.mark.parametrize(
    "change",
    [{"prompt_len": 24}, {"weight_format": "int4"}, {"machine": {"instructions": ["another"]}}, {"versions": {}}, {"graph": 3}],
)
def test_it_is_not_reused_if_anything_differs(
    change: dict, llama: TinySource, device: Device, settings: CostSettings, monkeypatch: pytest.MonkeyPatch
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
    assert open_table(opened, settings).identity != first.identity and len(device.runs) == 2
    assert len(device.exported) == (6 if {"graph", "weight_format"} & change.keys() else 3), "exported networks are reused, too"


@pytest.mark.parametrize("damage", ['{"schema": "lonas-', "other"])
def test_a_damaged_table_is_measured_again(damage: str, llama: TinySource, device: Device, settings: CostSettings) -> None:
    """So is a copied file of another machine."""
    first, messages = open_table(llama.opened(), settings), Messages()
    [file] = (settings.cache or Path()).glob("latency-table-*.json")
    if damage == "other":
        replace(first, identity=replace(first.identity, processor="another")).write(file)
    else:
        file.write_text(damage)
    again = open_table(llama.opened(), settings, messages)
    assert again.curves == first.curves and again.identity == first.identity and len(device.runs) == 2
    assert damage == "other" or (str(file) in messages[0] and "Measuring again.\n" in messages[0])
    assert LatencyTable.read(file) == again


def test_refused_before_anything_is_measured(llama: TinySource, device: Device, settings: CostSettings) -> None:
    opened = llama.opened()
    with pytest.raises(LonasEdgeError, match=r"--device TPU: not on this machine\. Present: CPU"):
        open_table(opened, replace(settings, device="TPU"))
    ranks = tuple(group for group in opened.space.groups if group.kind == "rank")
    alone = replace(opened, elasticity=replace(opened.elasticity, space=SearchSpace(ranks)))
    with pytest.raises(LonasEdgeError, match="no width that latency depends on"):
        open_table(alone, settings)
    assert not device.exported and not (settings.cache or Path()).exists()


def test_group_sizes_that_depend_on_the_width(llama: TinySource, device: Device, settings: CostSettings) -> None:
    """96 is a multiple of 32 only; INT8 has no quantization groups."""
    messages = Messages()
    open_table(llama.opened(), settings, messages)
    assert "group sizes" not in "".join(messages)
    open_table(llama.opened(), replace(settings, weight_format="int4"), messages)
    assert "int4: group sizes of 32, 64, depending on the widths" in "".join(messages)


def two_kinds(source: Source) -> Source:
    """A space whose first group has two layers' MLPs, and the second one narrower widths; and two groups of heads."""
    ranks = [group for group in source.space.groups if group.kind == "rank"]
    mlp = [group for group in source.space.groups if group.kind == "width"]
    both = Group((*mlp[0].members, *mlp[1].members), (128, 96))
    heads = [Group((Member(f"model.layers.{n}.self_attn.q_proj", "base", ""),), (64, 32)) for n in (0, 2)]
    space = SearchSpace((ranks[0], both, replace(mlp[2], widths=(96, 64)), *heads))
    return replace(source, elasticity=replace(source.elasticity, space=space))


def test_kinds_and_networks(llama: TinySource) -> None:
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


def test_many_widths_are_thinned(llama: TinySource) -> None:
    source = llama.opened()
    [first, *others] = [group for group in source.space.groups if group.kind == "width"]
    space = SearchSpace((replace(first, widths=tuple(range(128, 63, -4))), *others))
    [kind] = find_kinds(replace(source, elasticity=replace(source.elasticity, space=space)))
    assert len(kind.widths) == 9 and (kind.widths[0], kind.widths[-1]) == (128, 64) and kind.widths[1] == 120


def evaluated(source: TinySource, *names: str) -> list[tuple[str, Evaluation]]:
    """Networks by name, as evaluations."""
    widths = [source.opened().select(name).widths for name in names]
    return [(names[n], Evaluation(n + 10, chosen, 0.0, 0.0, 0.0, "")) for n, chosen in enumerate(widths)]


def test_measured_members_are_spread_over_the_front() -> None:
    front = [Evaluation(n, (), 0, 0, 0, "") for n in range(30)]
    assert [member.number for member in spread(front)] == [0, 4, 8, 12, 17, 21, 25, 29]
    assert spread(front[:8]) == front[:8]


def test_measured_and_predicted(llama: TinySource, device: Device, settings: CostSettings, tmp_path: Path) -> None:
    """The measurement is a tenth slower than the table."""
    opened, members = llama.opened(), evaluated(llama, "maximal", "heuristic", "random:3")
    table = open_table(opened, settings)
    device.slower = 1.1
    device.exported.clear()
    (tmp_path / "work/measured").mkdir(parents=True)  # of a killed run
    measured = measure_front(opened, members, settings, tmp_path / "work", table=table)
    assert [(network.name, network.evaluation) for network in measured] == [
        ("maximal", 10),
        ("heuristic", 11),
        ("random:3", 12),
    ]
    for network, (_, evaluation) in zip(measured, members, strict=True):
        expected = 1e3 * seconds(evaluation.widths)
        assert (network.predicted_ttft, network.predicted_tpot) == pytest.approx((expected, expected / 10))
        assert (network.ttft, network.tpot) == pytest.approx((1.1 * expected, 0.11 * expected))
    assert len(device.exported) == 1, "the others were exported for the table"
    assert not list((tmp_path / "work").iterdir()), "exports are deleted"
    [alone] = measure_front(opened, members[:1], settings, tmp_path / "work")
    assert alone.tpot and (alone.predicted_ttft, alone.predicted_tpot) == (None, None)
