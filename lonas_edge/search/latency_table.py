"""The latency table of a device: a few uniform networks, measured once. The latency of any other network adds up from it.

Layers of one shape cost the same, so latency is c + Σ f(w) over the layers. A network in which all n layers of a kind have the
width w takes c + n·f(w). So each layer of width w saves 1/n of what that network saves compared with the widest.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lonas_edge.bench import machine
from lonas_edge.bench.latency import Latency
from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import json_sha256
from lonas_edge.formats import FORMATS
from lonas_edge.ir.core import check_device
from lonas_edge.ir.fuse import GRAPH
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress, silent
from lonas_edge.schema import Record
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.timed import cache_of, cached_ir, one_at_a_time, shape_hash, time_irs, used_versions
from lonas_edge.search.uniform import Kind, find_kinds, uniform_networks


@dataclass(frozen=True)
class Identity:
    """Everything that a table depends on; it is reused where all of this is the same."""

    shape: str  # hash of the model's shapes and of the measured networks
    weight_format: str  # weight format of the IRs
    device: str  # OpenVINO device
    device_name: str  # its full name
    processor: str  # name of the machine's processor
    processors: int  # number of logical processors
    memory_gb: int  # memory of the machine
    threads: int  # computing threads
    prompt_len: int  # prompt tokens
    new_tokens: int  # generated tokens; 0 for a classifier
    batch_size: int  # prompts or texts per batch
    versions: dict[str, str]  # packages that write and run an IR
    graph: int  # version of the graphs that `export` writes (`ir.fuse.GRAPH`)
    instructions: tuple[str, ...]  # instruction sets: machines with one processor name differ

    @property
    def key(self) -> str:
        """Short hash for a file name."""
        return json_sha256(asdict(self))[:16]


@dataclass(frozen=True)
class Curve:
    """Median latency over the width of one kind's layers, all others at their widest; milliseconds, the widest first.

    TTFT and TPOT of a language model, latency of a classifier; the others are empty.
    """

    widths: tuple[int, ...]
    ttft: tuple[float, ...] = ()
    tpot: tuple[float, ...] = ()
    latency: tuple[float, ...] = ()


def curves_of(source: Source, kinds: Sequence[Kind], latencies: Mapping[tuple[int, ...], Latency]) -> dict[str, Curve]:
    """Make the curve of each kind from the measured latency of every uniform network."""
    networks = uniform_networks(source, kinds)

    def curve(kind: Kind) -> Curve:
        points = [asdict(latencies[networks[kind.name, width]]) for width in kind.widths]
        measured = [metric for metric, seconds in points[0].items() if seconds is not None]
        return Curve(kind.widths, **{metric: tuple(1e3 * point[metric] for point in points) for metric in measured})

    return {kind.name: curve(kind) for kind in kinds}


def predict(curves: Mapping[str, Curve], metric: str, kinds: Sequence[Kind], chosen: Sequence[int]) -> float:
    """Predict the latency of a network.

    Args:
        curves: By kind.
        metric: ttft, tpot or latency.
        kinds: The kinds of the search space.
        chosen: The network's widths in group order.

    Returns:
        Milliseconds.
    """
    total = widest = getattr(curves[kinds[0].name], metric)[0]
    for kind in kinds:
        curve = curves[kind.name]
        values, layers = getattr(curve, metric), sum(kind.layers.values())
        for group, count in kind.layers.items():
            alone = float(np.interp(chosen[group], curve.widths[::-1], values[::-1]))
            total += count / layers * (alone - widest)
    return float(total)


@dataclass(frozen=True)
class LatencyTable(Record):
    """A device's table, measured in one interleaved run."""

    NAME: ClassVar[str] = "latency-table"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Delete the file; the table is then measured again."
    identity: Identity  # what the table depends on
    date: str  # date of the measurement
    seconds: float  # its duration, exports included
    rounds: int  # measurements of every network
    starts: int  # process starts that they are spread over
    curves: dict[str, Curve]  # by kind of layers

    @property
    def machine(self) -> dict[str, Any]:
        """The machine that measured it: fields of `bench.machine.describe`."""
        identity = self.identity
        return {
            "processor": identity.processor,
            "processors": identity.processors,
            "instructions": list(identity.instructions),
            "device": identity.device,
            "device_name": identity.device_name,
        }

    @property
    def of_this_machine(self) -> bool:
        """Whether this machine measured it."""
        return self.machine.items() <= machine.describe(self.identity.device).items()


def open_table(source: Source, settings: CostSettings, progress: Progress = silent) -> LatencyTable:
    """Get this machine's latency table: the cached one, or one that is measured now."""
    check_device(settings.device)
    if not find_kinds(source):
        raise LonasEdgeError("The search space has no width that latency depends on; choose another --cost.")
    cache = cache_of(settings)
    with one_at_a_time(cache, progress):
        identity = _identity(source, settings)
        file = cache / f"latency-table-{identity.key}.json"
        table = _read(file, identity, progress)
        if table:
            again = "Delete the file to measure again."
            progress(f"Reusing the latency table of {table.date}: {file}. {again}\nLatency table", None)
        else:
            table = _measured(source, settings, identity, progress)
            table.write(file)
    return table


def _identity(source: Source, settings: CostSettings) -> Identity:
    here = machine.describe(settings.device)
    networks = list(uniform_networks(source, find_kinds(source)).values())
    return Identity(
        shape=shape_hash(source, networks),
        weight_format=settings.weight_format,
        device=settings.device,
        device_name=here["device_name"],
        processor=here["processor"],
        processors=here["processors"],
        memory_gb=round(here["memory_bytes"] / 1e9),  # the kernel's own part of it varies
        threads=machine.placement(settings.threads).threads,
        prompt_len=settings.prompt_len,
        new_tokens=settings.new_tokens,
        batch_size=settings.batch_size,
        versions=used_versions(),
        graph=GRAPH,
        instructions=tuple(here["instructions"]),
    )


def _read(file: Path, identity: Identity, progress: Progress) -> LatencyTable | None:
    """Read the table in a file, if it can be reused."""
    if not file.exists():
        return None
    try:
        table = LatencyTable.read(file)
    except LonasEdgeError as error:
        progress(f"{error}\nMeasuring again.\nLatency table", None)
        return None
    return table if table.identity == identity else None


def _measured(source: Source, settings: CostSettings, identity: Identity, progress: Progress) -> LatencyTable:
    """Export the uniform networks and measure them in one run; the widest is measured once for all kinds."""
    start, kinds, weight_format = time.perf_counter(), find_kinds(source), settings.weight_format
    networks = list(dict.fromkeys(uniform_networks(source, kinds).values()))
    _report_group_sizes(source, networks, weight_format, progress)
    folders = []
    for number, widths in enumerate(networks):
        progress(f"Latency table: exporting network {number + 1} of {len(networks)}", number / len(networks))
        folders.append(cached_ir(source, widths, weight_format, cache_of(settings)))
    times = time_irs(folders, settings, lambda what, done: progress(f"Latency table: {what}", done))
    curves = curves_of(source, kinds, dict(zip(networks, times, strict=True)))
    seconds = round(time.perf_counter() - start, 1)
    return LatencyTable(identity, time.strftime("%Y-%m-%d"), seconds, settings.rounds, settings.starts, curves)


def _report_group_sizes(source: Source, networks: Sequence[Sequence[int]], weight_format: str, progress: Progress) -> None:
    """Report it where the quantization group size depends on the widths: predictions are then less exact."""
    other = {source.architecture.family.head, *(name.removesuffix(".weight") for name in source.architecture.eight_bits)}
    sizes = set()
    for network in networks:
        columns = [widths.in_features for name, widths in source.subnetwork(network).linears.items() if name not in other]
        sizes.add(FORMATS[weight_format].group_size([count for count in columns if count]))
    if len(sizes) > 1:
        shown = ", ".join(sorted(map(str, sizes)))
        progress(
            f"{weight_format}: group sizes of {shown}, depending on the widths. A network with mixed widths uses the smallest "
            "and is slower than predicted.\nLatency table",
            None,
        )
