"""IRs that are made to be timed: exported in a separate process, and cached by what their latency depends on."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lonas_edge.bench.latency import Latency, ir_latencies
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.worker import run_in_process
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.files import json_sha256
from lonas_edge.formats import FORMATS
from lonas_edge.ir.fuse import GRAPH
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress
from lonas_edge.search.cost import CostSettings
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.versions import versions

WARMUP = 1  # discarded measurements of every network at every start
_PACKAGES = ("lonas-edge", "nncf", "openvino", "openvino-genai", "optimum-intel", "transformers")
_NOT_SHAPES = ("dtype", "torch_dtype", "transformers_version", "architectures")  # fields of a configuration


def cache_of(settings: CostSettings) -> Path:
    """Return the directory of latency tables and of the networks behind them."""
    return settings.cache or BenchOptions().cache


def used_versions() -> dict[str, str]:
    """Return the versions of the packages that write and run an IR."""
    return versions(_PACKAGES)


def shape_hash(source: Source, networks: Sequence[Sequence[int]]) -> str:
    """Hash everything that the latency of networks depends on in their model; values of weights do not matter."""
    config = source.architecture.config.to_dict()
    known = {name: value for name, value in config.items() if not name.startswith("_") and name not in _NOT_SHAPES}
    shapes = [source.subnetwork(widths).shapes(source.unties) for widths in networks]
    return json_sha256([known, shapes], default=str)


def cached_ir(source: Source, widths: Sequence[int], weight_format: str, folder: Path, *others: Path) -> Path:
    """Find or export an IR for timing; its logits are not verified."""
    identity = [shape_hash(source, [widths]), weight_format, used_versions(), GRAPH]
    name = f"latency-{json_sha256(identity)[:16]}"
    for parent in (folder, *others):
        if (parent / name).exists():
            return parent / name
    export_apart(source, source.subnetwork(widths, "latency"), folder / name, ExportOptions(weight_format, verify=False))
    return folder / name


def export_apart(source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
    """Export in a separate process, which frees its memory."""
    run_in_process(_export, source, subnetwork, folder, options)


def _export(source: Source, subnetwork: Subnetwork, folder: Path, options: ExportOptions) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `lonas-edge export` does
    export(source, subnetwork, folder, options)


def stock_properties(settings: CostSettings) -> Mapping[str, str]:
    """Runtime properties that stock clients use; a classifier has no KV cache."""
    has_cache = settings.new_tokens and not settings.device.startswith("NPU")
    return {"KV_CACHE_PRECISION": FORMATS[settings.weight_format].kv_cache} if has_cache else {}


def time_irs(folders: Sequence[Path], settings: CostSettings, progress: Progress) -> list[Latency]:
    """Measure IRs in one interleaved run with the properties of stock clients; return their medians in order."""
    run = [(folder, stock_properties(settings)) for folder in folders]
    schedule = Schedule(settings.rounds, settings.starts, WARMUP)
    return ir_latencies(run, settings.case, schedule, settings.device, settings.threads, progress)


@contextmanager
def one_at_a_time(cache: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process of the user measures latency here: two at once would disturb each other."""
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
