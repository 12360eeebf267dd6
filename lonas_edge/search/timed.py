"""IRs that are made to be timed: exported in a process of their own, and kept by what their latency depends on."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256 as digest
from pathlib import Path

from filelock import FileLock, Timeout

from lonas_edge.bench.latency import Latency, ir_latencies
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.worker import apart
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.formats import FORMATS
from lonas_edge.ir.fuse import GRAPH
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.space.complexity import materialized_shapes
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.versions import versions

WARMUP = 1  # generations of every network at every start that do not count
_PACKAGES = ("lonas-edge", "nncf", "openvino", "openvino-genai", "optimum-intel", "transformers")
_NOT_SHAPES = ("dtype", "torch_dtype", "transformers_version", "architectures")  # fields of a configuration


def cache_of(settings: CostSettings) -> Path:
    """Where tables and the networks that they are measured on are kept."""
    return settings.cache or BenchOptions().cache


def used_versions() -> dict[str, str]:
    """Versions of what makes an IR and of what runs it."""
    return versions(_PACKAGES)


def shape_hash(source: Source, networks: Sequence[Sequence[int]]) -> str:
    """SHA-256 over all that the latency of networks depends on in their model. What the weights are does not matter.

    Args:
        source: Base model, adapter and search space.
        networks: Widths in group order.

    Returns:
        The hash.
    """
    config = source.architecture.config.to_dict()
    known = {name: value for name, value in config.items() if not name.startswith("_") and name not in _NOT_SHAPES}
    shapes = [materialized_shapes(source.subnetwork(widths), source.unties) for widths in networks]
    return digest(json.dumps([known, shapes], sort_keys=True, default=str).encode()).hexdigest()


def kept_ir(source: Source, widths: Sequence[int], weight_format: str, folder: Path, *others: Path) -> Path:
    """An IR of a network for timing, its answers not verified; exported where there is none yet.

    Args:
        source: Base model, adapter and search space.
        widths: In group order.
        weight_format: How its weights are stored.
        folder: Where it is kept.
        *others: Where else one may be.

    Returns:
        The exported directory.

    Raises:
        LonasEdgeError: If it cannot be exported.
    """
    identity = [shape_hash(source, [widths]), weight_format, used_versions(), GRAPH]
    name = f"latency-{digest(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]}"
    made = next((place / name for place in (folder, *others) if (place / name).exists()), None)
    if made is None:
        made = folder / name
        export_apart(source, source.subnetwork(widths, "latency"), made, ExportOptions(weight_format, verify=False))
    return made


def export_apart(source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
    """Export in a process of its own, whose memory goes with it.

    Args:
        source: Base model, adapter and search space.
        subnetwork: The chosen widths.
        folder: The directory to write.
        options: What to write.

    Raises:
        LonasEdgeError: If it cannot be exported.
    """
    apart(_export, source, subnetwork, folder, options)


def _export(source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `lonas-edge export` does
    export(source, subnetwork, folder, options)


def stock_properties(weight_format: str, settings: CostSettings) -> Mapping[str, str]:
    """Run-time properties that stock clients give an IR, told explicitly.

    Args:
        weight_format: How its weights are stored.
        settings: The device, and whether anything is generated: a classifier has no KV cache.

    Returns:
        Values by name.
    """
    cached = settings.new_tokens and not settings.device.startswith("NPU")
    return {"KV_CACHE_PRECISION": FORMATS[weight_format].kv_cache} if cached else {}


def time_irs(irs: Sequence[tuple[Path, str]], settings: CostSettings, progress: Progress) -> list[Latency]:
    """Measure IRs in one interleaved run, each as stock clients run it.

    Args:
        irs: Directory and weight format of each.
        settings: Device, lengths, how often.
        progress: Called with what is being done, and with the share done.

    Returns:
        Medians, in the order of `irs`.

    Raises:
        LonasEdgeError: If one cannot be measured; all that cannot are listed.
    """
    schedule = Schedule(settings.rounds, settings.starts, WARMUP)
    run = [(folder, stock_properties(weight_format, settings)) for folder, weight_format in irs]
    return ir_latencies(run, settings.case, schedule, settings.device, settings.threads, progress)


@contextmanager
def one_at_a_time(cache: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process of the user measures latency here: two at once would disturb each other.

    Args:
        cache: Where tables are kept.
        progress: Called where it has to wait.

    Yields:
        Nothing; it is held while the block runs.
    """
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / ".latency.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("Waiting for another process that measures latency", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
