"""Measurement of the searched networks: members of the front and the picks, exported and timed in one interleaved run."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lonas_edge.bench.latency import Latency
from lonas_edge.ir.core import check_device
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress, silent
from lonas_edge.search.cost import CostSettings
from lonas_edge.search.latency_table import LatencyTable, predict
from lonas_edge.search.record import Evaluation, Measured
from lonas_edge.search.timed import cache_of, cached_ir, one_at_a_time, time_irs
from lonas_edge.search.uniform import find_kinds

MOST = 8  # measured members of the front
_SCRATCH = "measured"


def spread(front: Sequence[Evaluation], most: int = MOST) -> list[Evaluation]:
    """Choose the members of a front to measure: both ends, and others evenly spread."""
    if len(front) <= most:
        return list(front)
    return [front[round(position * (len(front) - 1) / (most - 1))] for position in range(most)]


def measure_front(
    source: Source,
    members: Sequence[tuple[str, Evaluation]],
    settings: CostSettings,
    folder: Path,
    progress: Progress = silent,
    table: LatencyTable | None = None,
) -> list[Measured]:
    """Export networks and measure them in one interleaved run. The exports are deleted afterwards."""
    check_device(settings.device)
    cache, scratch, folders = cache_of(settings), folder / _SCRATCH, []
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    scratch.mkdir()
    try:
        with one_at_a_time(cache, progress):
            for position, (name, network) in enumerate(members):
                progress(f"Exporting {name} ({position + 1} of {len(members)})", position / len(members))
                folders.append(cached_ir(source, network.widths, settings.weight_format, scratch, cache))
            times = time_irs(folders, settings, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    kinds = find_kinds(source)

    def figures(network: Evaluation, latency: Latency) -> dict[str, float]:
        measured = {metric: 1e3 * getattr(latency, metric) for metric in settings.metrics}
        if table:
            measured |= {f"predicted_{name}": predict(table.curves, name, kinds, network.widths) for name in settings.metrics}
        return measured

    return [
        Measured(name, network.number, **figures(network, latency))
        for (name, network), latency in zip(members, times, strict=True)
    ]
