"""The latency table of a device: a few uniform networks, measured once. The latency of any other network adds up from it.

Layers of one shape cost the same wherever they are. So groups that narrow the same layers of their decoder layers form a kind.
The cost of a width shows in the network in which every group of a kind has it; the cost of removable blocks shows in the
network without any of their kind. Latency is c + Σ f(w) over the layers. A network in which all n layers of a kind have the
width w takes c + n·f(w). So each layer of width w saves 1/n of what that network saves compared with the widest.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock

from lonas_edge.bench import machine
from lonas_edge.bench.latency import ir_latencies
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.worker import run_in_process
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.files import json_sha256
from lonas_edge.formats import FORMATS
from lonas_edge.ir.core import check_device
from lonas_edge.ir.fuse import GRAPH
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress, silent
from lonas_edge.schema import Record
from lonas_edge.search.cost import END_TO_END, CostFunction, CostSettings
from lonas_edge.versions import versions

CACHE = BenchOptions().cache  # of latency tables and of the networks behind them
SCHEDULE = Schedule(12, 4, 1)  # measurements of each network, process starts, discarded measurements at each start
_PACKAGES = ("lonas-edge", "nncf", "openvino", "openvino-genai", "optimum-intel", "transformers")
_NOT_SHAPES = ("dtype", "torch_dtype", "transformers_version", "architectures")  # fields of a configuration
_MOST_WIDTHS = 9  # measured per kind, evenly spread with both ends; others are interpolated
_MACHINE = ("processor", "processors", "instructions", "device", "device_name")


@dataclass(frozen=True)
class LayerKind:
    """Groups that narrow layers of one shape."""

    name: str  # the layers, as named inside a decoder layer
    layers: dict[int, int]  # number of decoder layers that each group narrows, by group index
    widths: tuple[int, ...]  # the measured widths, widest first


def find_kinds(source: Source) -> tuple[LayerKind, ...]:
    """Find the kinds of groups that latency depends on. Ranks are not among them: they vanish when merged.

    Layers of one name and other full widths are another kind, with the width in its name.
    """
    architecture, groups = source.architecture, source.space.groups
    layers: dict[tuple[str, int], dict[int, int]] = {}
    for index, group in enumerate(groups):
        if group.kind == "rank":
            continue
        parts: dict[str, list[str]] = {}  # the group's modules by decoder layer
        full = 0
        for module in group.modules:
            layer, relative = architecture.split(module)
            parts.setdefault(layer, []).append(relative or "layer")
            if module in architecture.linears:
                full = max(full, architecture.linears[module].out_features)
        names = sorted(", ".join(sorted(part)) for part in parts.values())
        alike = len(set(names)) == 1  # several layers that lose the same modules share a kind with single layers
        name, count = (names[0], len(names)) if alike else ("; ".join(names), 1)
        layers.setdefault((name, full), {})[index] = count
    kinds, names = [], [name for name, _ in layers]
    for (name, full), counts in layers.items():
        widths = sorted({width for index in counts for width in groups[index].widths}, reverse=True)
        if len(widths) > 1:
            count = min(len(widths), _MOST_WIDTHS)
            spread = tuple(widths[round(position * (len(widths) - 1) / (count - 1))] for position in range(count))
            kinds.append(LayerKind(name if names.count(name) == 1 else f"{name} of {full}", counts, spread))
    return tuple(kinds)


def uniform_networks(source: Source, kinds: Sequence[LayerKind]) -> dict[tuple[str, int], tuple[int, ...]]:
    """List the networks to measure: the groups of one kind have one width, all others their kind's widest.

    Returns:
        Widths in group order, by kind and width. The widest network occurs once per kind.
    """
    widest = list(source.elasticity.maximal)
    for kind in kinds:
        for index in kind.layers:
            widest[index] = kind.widths[0]
    networks = {}
    for kind in kinds:
        for width in kind.widths:
            networks[kind.name, width] = tuple(width if index in kind.layers else widest[index] for index in range(len(widest)))
    return networks


Curves = Mapping[str, Mapping[str, Sequence[float]]]  # by kind and metric: milliseconds of each of the kind's widths


def predicted_cost(name: str, source: Source, settings: CostSettings, curves: Curves) -> CostFunction:
    """Make the function that predicts a timed cost in milliseconds."""
    kinds, canonical = find_kinds(source), source.elasticity.canonical

    def predict(metric: str, widths: Sequence[int]) -> float:
        total = widest = curves[kinds[0].name][metric][0]
        for kind in kinds:
            times, layers = curves[kind.name][metric], sum(kind.layers.values())
            for group, count in kind.layers.items():
                alone = float(np.interp(widths[group], kind.widths[::-1], times[::-1]))
                total += count / layers * (alone - widest)
        return float(total)

    def cost(widths: Sequence[int]) -> float:
        times = {metric: predict(metric, canonical(widths)) for metric in settings.metrics}
        return times["ttft"] + (settings.new_tokens - 1) * times["tpot"] if name == END_TO_END else times[name]

    return cost


def shape_hash(source: Source, networks: Sequence[Sequence[int]]) -> str:
    """Hash everything that the latency of networks depends on in their model; values of weights do not matter."""
    config = source.architecture.config.to_dict()
    known = {name: value for name, value in config.items() if not name.startswith("_") and name not in _NOT_SHAPES}
    shapes = [source.subnetwork(widths).shapes(source.unties) for widths in networks]
    return json_sha256([known, shapes], default=str)


def cached_ir(source: Source, widths: Sequence[int], weight_format: str) -> Path:
    """Export an IR for timing, or find the one in the cache; its logits are not verified."""
    identity = [shape_hash(source, [widths]), weight_format, versions(_PACKAGES), GRAPH]
    folder = CACHE / f"latency-{json_sha256(identity)[:16]}"
    if not folder.exists():
        options = ExportOptions(weight_format=weight_format, verify=False)
        run_in_process(export, source, source.subnetwork(widths, "latency"), folder, options)  # which frees its memory
    return folder


@dataclass(frozen=True)
class LatencyTable(Record):
    """A device's table, measured in one interleaved run."""

    NAME: ClassVar[str] = "latency-table"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Delete the file; the table is then measured again."
    identity: dict[str, Any]  # everything that the table depends on; it is reused where all of this is the same
    date: str
    seconds: float  # duration of the measurement, exports included
    curves: dict[str, dict[str, tuple[float, ...]]]  # by kind of layers and metric

    @property
    def machine(self) -> dict[str, Any]:
        """The machine that measured it: fields of `bench.machine.describe`."""
        return {name: self.identity[name] for name in _MACHINE}


def open_table(source: Source, settings: CostSettings, progress: Progress = silent) -> LatencyTable:
    """Get this machine's latency table: the cached one, or one that is measured now."""
    check_device(settings.device)
    kinds = find_kinds(source)
    if not kinds:
        raise LonasEdgeError("The search space has no width that latency depends on; choose another --cost.")
    networks, here = uniform_networks(source, kinds), machine.describe(settings.device)
    CACHE.mkdir(parents=True, exist_ok=True)
    progress("Latency table", None)
    with FileLock(CACHE / ".latency.lock"):  # a second process waits for the first one's table
        identity = {
            "shape": shape_hash(source, list(networks.values())),
            "weight_format": settings.weight_format,
            "prompt_len": settings.prompt_len,
            "new_tokens": settings.new_tokens,
            **{name: here[name] for name in _MACHINE},
            "memory_gb": round(here["memory_bytes"] / 1e9),  # the kernel's own part of it varies
            "threads": machine.placement().threads,
            "versions": versions(_PACKAGES),
            "graph": GRAPH,
        }
        file = CACHE / f"latency-table-{json_sha256(identity)[:16]}.json"
        if file.exists():
            table = LatencyTable.read(file)
            again = "Delete the file to measure again."
            progress(f"Reusing the latency table of {table.date}: {file}. {again}\nLatency table", None)
        else:
            start = time.perf_counter()
            curves = _measure(source, kinds, networks, settings, progress)
            table = LatencyTable(identity, time.strftime("%Y-%m-%d"), round(time.perf_counter() - start, 1), curves)
            table.write(file)
    return table


def _measure(
    source: Source,
    kinds: Sequence[LayerKind],
    networks: Mapping[tuple[str, int], tuple[int, ...]],
    settings: CostSettings,
    progress: Progress,
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Export the uniform networks and measure them in one interleaved run, with the properties of stock clients.

    Returns:
        The curves of each kind, all other kinds at their widest.
    """
    has_cache = settings.new_tokens and not settings.device.startswith("NPU")
    properties = {"KV_CACHE_PRECISION": FORMATS[settings.weight_format].kv_cache} if has_cache else {}
    distinct, irs = list(dict.fromkeys(networks.values())), []
    for number, widths in enumerate(distinct):
        progress(f"Latency table: exporting network {number + 1} of {len(distinct)}", number / len(distinct))
        irs.append((cached_ir(source, widths, settings.weight_format), properties))
    times = ir_latencies(irs, settings.case, SCHEDULE, settings.device, progress=progress)
    latencies, curves = dict(zip(distinct, times, strict=True)), {}
    for kind in kinds:
        measured = [latencies[networks[kind.name, width]] for width in kind.widths]
        curves[kind.name] = {name: tuple(1e3 * latency[name] for latency in measured) for name in settings.metrics}
    return curves
