"""The latency table of a device: a few networks of equal widths, measured once. Every other network's latency adds up from it.

Layers of one shape cost the same, so latency is c + Σ f(w) over the layers. A network in which all n layers of a kind have the
width w takes c + n·f(w); so each layer of width w saves 1/n of what that network saves beside the widest one.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256 as digest
from pathlib import Path
from typing import ClassVar

import numpy as np

from lonas_edge.bench import machine
from lonas_edge.bench.latency import Latency
from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS
from lonas_edge.ir.fuse import GRAPH
from lonas_edge.ir.runtime import check_device
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress, silent
from lonas_edge.schema import Record
from lonas_edge.search.timed import (
    cache_of,
    kept_ir,
    one_at_a_time,
    shape_hash,
    stock_properties,
    time_irs,
    used_versions,
)
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.search.uniform import Kind, find_kinds, uniform_networks


@dataclass(frozen=True)
class Identity:
    """What a table is of; it is used again where all of this is the same.

    Attributes:
        shape: Hash of the model's shapes and of the widths that were measured.
        device: The OpenVINO device.
        device_name: Its own name.
        processor: The machine's.
        processors: How many it has.
        memory_gb: Its memory.
        threads: That computed.
        prompt_len: Tokens of the prompt.
        new_tokens: Tokens generated; 0 where a classifier's pass was measured.
        versions: Of what makes an IR and runs it.
        graph: Of the graphs that `export` writes (`ir.fuse.GRAPH`).
        batch_size: Prompts or texts computed together.
        instructions: What its processor can do: machines of one processor's name differ.
    """

    shape: str
    device: str
    device_name: str
    processor: str
    processors: int
    memory_gb: int
    threads: int
    prompt_len: int
    new_tokens: int
    versions: dict[str, str]
    graph: int
    batch_size: int
    instructions: tuple[str, ...]

    @property
    def key(self) -> str:
        """Short, for a file's name."""
        return digest(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Curve:
    """Median latency over the width of one kind's layers, all others at their widest; milliseconds, the widest first.

    Of a language model TTFT and TPOT, of a classifier the latency of a pass; what was not measured is empty.
    """

    widths: tuple[int, ...]
    ttft: tuple[float, ...] = ()
    tpot: tuple[float, ...] = ()
    latency: tuple[float, ...] = ()


@dataclass(frozen=True)
class FormatTable:
    """What was measured at one weight format: the run-time properties, and a curve for each kind of layers."""

    properties: dict[str, str]
    curves: dict[str, Curve]

    def predict(self, metric: str, kinds: Sequence[Kind], chosen: Sequence[int]) -> float:
        """The latency of a network.

        Args:
            metric: ttft, tpot or latency.
            kinds: Those of its search space.
            chosen: Its widths in group order.

        Returns:
            Milliseconds.
        """
        total = widest = getattr(self.curves[kinds[0].name], metric)[0]
        for kind in kinds:
            curve = self.curves[kind.name]
            values, layers = getattr(curve, metric), sum(kind.layers.values())
            for group, count in kind.layers.items():
                alone = float(np.interp(chosen[group], curve.widths[::-1], values[::-1]))
                total += count / layers * (alone - widest)
        return float(total)


def format_table(
    source: Source, kinds: Sequence[Kind], latencies: Mapping[tuple[int, ...], Latency], properties: Mapping[str, str]
) -> FormatTable:
    """The table of one weight format.

    Args:
        source: Base model, adapter and search space.
        kinds: The kinds of its groups.
        latencies: Of every uniform network.
        properties: The run-time properties that they had.

    Returns:
        The table.
    """
    networks = uniform_networks(source, kinds)

    def curve(kind: Kind) -> Curve:
        own = [asdict(latencies[networks[kind.name, width]]) for width in kind.widths]
        measured = [metric for metric, seconds in own[0].items() if seconds is not None]
        return Curve(kind.widths, **{metric: tuple(1e3 * one[metric] for one in own) for metric in measured})

    return FormatTable(dict(properties), {kind.name: curve(kind) for kind in kinds})


@dataclass(frozen=True)
class LatencyTable(Record):
    """A device's table. All of it was measured in one interleaved run.

    Attributes:
        identity: What it is of.
        date: When it was measured.
        seconds: What that took, exports included.
        rounds: How often every network was measured.
        starts: Over how many starts.
        formats: What was measured, by weight format.
    """

    NAME: ClassVar[str] = "latency-table"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Remove it: it is measured again."
    identity: Identity
    date: str
    seconds: float
    rounds: int
    starts: int
    formats: dict[str, FormatTable]

    def predict(self, metric: str, kinds: Sequence[Kind], chosen: Sequence[int], weight_format: str) -> float:
        """The latency of a network.

        Args:
            metric: ttft, tpot or latency, as the table's `identity` says.
            kinds: Those of its search space.
            chosen: Its widths in group order.
            weight_format: Its weight format.

        Returns:
            Milliseconds.

        Raises:
            LonasEdgeError: If the table has no such weight format or kinds.
        """
        curves = self.formats[weight_format].curves if weight_format in self.formats else {}
        missing = [kind.name for kind in kinds if kind.name not in curves]
        if missing or not kinds:
            raise LonasEdgeError(
                f"The latency table of {self.date} has no {weight_format} networks of other widths of {', '.join(missing)}: "
                "it is of another model or weight format. Search without it."
            )
        return self.formats[weight_format].predict(metric, kinds, chosen)


def open_table(source: Source, settings: CostSettings, progress: Progress = silent) -> LatencyTable:
    """The latency table of this machine: the one that is kept, or one that is measured now.

    Args:
        source: Base model, adapter and search space.
        settings: Device, lengths, weight formats.
        progress: Called with what is being done, and with the share done.

    Returns:
        The table; it has all the weight formats, and may have more.

    Raises:
        LonasEdgeError: If the device is not there, the lengths are beyond the model's context, there is no width to choose, or
            a network cannot be exported or measured.
    """
    check_device(settings.device)
    _check(source, settings)
    cache = cache_of(settings)
    with one_at_a_time(cache, progress):
        identity = _identity(source, settings)
        file = cache / f"latency-table-{identity.key}.json"
        found = _read(file, identity, progress)
        if found and set(settings.weight_formats) <= found.formats.keys():
            progress(f"The latency table of {found.date} is used again ({file})\nLatency table", None)
            return found
        formats = tuple(dict.fromkeys((*(found.formats if found else ()), *settings.weight_formats)))
        table = _measured(source, settings, identity, formats, progress)
        table.write(file)
    return table


def kept_table(source: Source, settings: CostSettings) -> LatencyTable | None:
    """The table that `open_table` would use again; nothing is measured.

    Args:
        source: Base model, adapter and search space.
        settings: Device, lengths.

    Returns:
        The table, if there is one; it may lack weight formats.
    """
    identity = _identity(source, settings)
    return _read(cache_of(settings) / f"latency-table-{identity.key}.json", identity, silent)


def _check(source: Source, settings: CostSettings) -> None:
    context = getattr(source.architecture.config, "max_position_embeddings", None)
    length = settings.prompt_len + settings.new_tokens
    if context and length > context:
        told, ways = f"{settings.prompt_len}", "--prompt-len"
        if settings.new_tokens:
            told, ways = f"{told}+{settings.new_tokens}", f"{ways} or --new-tokens"
        raise LonasEdgeError(f"{told} tokens are longer than the model's context of {context}. Choose a shorter {ways}.")
    if not find_kinds(source):
        raise LonasEdgeError("The search space has no width that a latency depends on; choose another --cost.")


def _identity(source: Source, settings: CostSettings) -> Identity:
    told = machine.describe(settings.device)
    networks = list(uniform_networks(source, find_kinds(source)).values())
    return Identity(
        shape=shape_hash(source, networks),
        device=settings.device,
        device_name=told["device_name"],
        processor=told["processor"],
        processors=told["processors"],
        memory_gb=round(told["memory_bytes"] / 1e9),  # the kernel's own part of it changes
        threads=machine.placement(settings.threads).threads,
        prompt_len=settings.prompt_len,
        new_tokens=settings.new_tokens,
        versions=used_versions(),
        graph=GRAPH,
        batch_size=settings.batch_size,
        instructions=tuple(told["instructions"]),
    )


def _read(file: Path, identity: Identity, progress: Progress) -> LatencyTable | None:
    """The table in a file, where it can be used again; a damaged one is told."""
    if not file.exists():
        return None
    try:
        found = LatencyTable.read(file)
    except LonasEdgeError as error:
        progress(f"{error}\nIt is measured again.\nLatency table", None)
        return None
    return found if found.identity == identity else None


def _measured(
    source: Source, settings: CostSettings, identity: Identity, formats: Sequence[str], progress: Progress
) -> LatencyTable:
    """Export the networks and measure them in one run; the one that has all its widths is measured once for all kinds."""
    start, kinds = time.perf_counter(), find_kinds(source)
    networks = uniform_networks(source, kinds)
    _tell_groups(source, list(networks.values()), formats, progress)
    wanted = list(dict.fromkeys((name, widths) for name in formats for widths in networks.values()))
    irs = []
    for place, (name, widths) in enumerate(wanted):
        progress(f"Latency table: exporting network {place + 1} of {len(wanted)}", place / len(wanted))
        irs.append((kept_ir(source, widths, name, cache_of(settings)), name))

    def told(what: str, done: float | None) -> None:
        progress(f"Latency table: {what}", done)

    found = dict(zip(wanted, time_irs(irs, settings, told), strict=True))

    tables = {
        name: format_table(
            source,
            kinds,
            {widths: latency for (stored, widths), latency in found.items() if stored == name},
            stock_properties(name, settings),
        )
        for name in formats
    }
    seconds = round(time.perf_counter() - start, 1)
    return LatencyTable(identity, time.strftime("%Y-%m-%d"), seconds, settings.rounds, settings.starts, tables)


def _tell_groups(source: Source, networks: Sequence[Sequence[int]], formats: Sequence[str], progress: Progress) -> None:
    """A format whose groups of columns depend on all widths does not add up exactly where these are mixed."""
    head = source.architecture.family.head
    widths = [source.subnetwork(network).linears for network in networks]
    columns = [[one.in_features for name, one in each.items() if name != head and one.in_features] for each in widths]
    for name in formats:
        sizes = {FORMATS[name].group_size(own) for own in columns}
        if len(sizes) > 1:
            told = ", ".join(sorted(map(str, sizes)))
            progress(
                f"{name}: networks of equal widths have groups of {told} columns. Where widths are mixed all layers have the "
                "smallest, and take longer than predicted.\nLatency table",
                None,
            )
