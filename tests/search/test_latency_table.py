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
from lonas_edge.search import latency_table
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.latency_table import LayerKind, find_kinds, open_table, predicted_cost, uniform_networks
from lonas_edge.space.search_space import Group, Member, SearchSpace

FIRST, EACH = 0.010, {128: 0.0050, 96: 0.0052, 64: 0.0021}  # a device that is slow with 96: seconds of TTFT


def seconds(widths: Sequence[int]) -> float:
    """TTFT of a network."""
    return FIRST + sum(EACH[width] for width in widths if width > 8)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    """An artificial device, and a temporary cache."""
    made = Device(seconds)
    made.install(monkeypatch, tmp_path / "cache")
    return made


SETTINGS = CostSettings("int8", prompt_len=16, new_tokens=8)


def test_latencies_add_up(llama: TinySource, device: Device) -> None:
    opened, maximal = llama.opened(), [values[0] for values in llama.groups()]
    table = open_table(opened, SETTINGS)
    costs = {metric: predicted_cost(metric, opened, SETTINGS, table.curves) for metric in ("ttft", "tpot", "end-to-end")}
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
def test_the_measurement(weight_format: str, cached: str, llama: TinySource, device: Device) -> None:
    open_table(llama.opened(), replace(SETTINGS, weight_format=weight_format))
    assert device.arguments == [(SETTINGS.case, Schedule(12, 4, 1), "CPU")]
    assert device.runs == [[{"KV_CACHE_PRECISION": cached}] * 3]
    assert {name for _, name, _ in device.exported} == {weight_format}


def test_it_is_reused(llama: TinySource, tiny_models: TinyModels, device: Device, tmp_path: Path) -> None:
    """Also for another adapter: the values of weights do not matter."""
    messages, first = list[str](), open_table(llama.opened(), SETTINGS)
    again = open_table(llama.opened(), SETTINGS, lambda what, _done: messages.append(what))
    assert again == first and len(device.runs) == 1
    [file] = (tmp_path / "cache").glob("latency-table-*.json")
    assert f"Reusing the latency table of {first.date}: {file}. Delete the file to measure again.\n" in messages[-1]
    other = replace(llama, adapter=tiny_models.adapter("llama", lora_alpha=4)).opened()
    assert open_table(other, SETTINGS) == first and len(device.runs) == 1


@pytest.mark.parametrize(
    "change",
    [{"prompt_len": 24}, {"weight_format": "int4"}, {"machine": {"instructions": ["another"]}}, {"versions": {}}, {"graph": 3}],
)
def test_it_is_not_reused_if_anything_differs(
    change: dict, llama: TinySource, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, first, settings = llama.opened(), open_table(llama.opened(), SETTINGS), SETTINGS
    if "machine" in change:
        here = machine.describe("CPU")
        monkeypatch.setattr(machine, "describe", lambda _: here | change["machine"])
    elif "graph" in change:
        monkeypatch.setattr(latency_table, "GRAPH", change["graph"])
    elif "versions" in change:
        monkeypatch.setattr(latency_table, "versions", lambda _: {"openvino": "another"})
    else:
        settings = replace(settings, **change)
    assert open_table(opened, settings).identity != first.identity and len(device.runs) == 2
    assert len(device.exported) == (3 if {"prompt_len", "machine"} & change.keys() else 6), "exported networks are reused, too"


def test_refused_before_anything_is_measured(llama: TinySource, device: Device) -> None:
    opened = llama.opened()
    with pytest.raises(LonasEdgeError, match=r"--device TPU: not on this machine\. Present: CPU"):
        open_table(opened, replace(SETTINGS, device="TPU"))
    ranks = tuple(group for group in opened.space.groups if group.kind == "rank")
    alone = replace(opened, elasticity=replace(opened.elasticity, space=SearchSpace(ranks)))
    with pytest.raises(LonasEdgeError, match="no width that latency depends on"):
        open_table(alone, SETTINGS)
    assert not device.exported


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
    assert kinds == (LayerKind(mlp, {1: 2, 2: 1}, (128, 96, 64)), LayerKind("self_attn.q_proj", {3: 1, 4: 1}, (64, 32)))
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
