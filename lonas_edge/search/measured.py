"""The prediction beside the measurement: members of the front and picks, exported and timed in one interleaved run."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lonas_edge.bench.latency import Latency
from lonas_edge.exporting.export import ExportOptions
from lonas_edge.ir.runtime import check_device
from lonas_edge.network.source import Source
from lonas_edge.progress import Progress, silent
from lonas_edge.search.latency_table import LatencyTable, kept_table
from lonas_edge.search.record import Evaluation, Measured
from lonas_edge.search.timed import cache_of, export_apart, kept_ir, one_at_a_time, time_irs
from lonas_edge.search.timing_settings import CostSettings
from lonas_edge.search.uniform import find_kinds

EXPORTED = "exported"  # directory of the networks that are kept, in a search's output directory
MOST = 8  # members of the front that are measured
_SCRATCH = ".measured-"

Member = tuple[str, Evaluation]  # a name that is a file's, too, and the network


def spread(front: Sequence[Evaluation], most: int = MOST) -> list[Evaluation]:
    """Members of a front to measure: both ends, and those between them evenly spread over the front.

    Args:
        front: The front, the cheapest first.
        most: How many, at least two.

    Returns:
        The members, the cheapest first.
    """
    if len(front) <= most:
        return list(front)
    return [front[round(place * (len(front) - 1) / (most - 1))] for place in range(most)]


def measure_front(
    source: Source,
    members: Sequence[Member],
    settings: CostSettings,
    output: Path,
    progress: Progress = silent,
    keep: Collection[str] = (),
    table: LatencyTable | None = None,
) -> list[Measured]:
    """Export networks and measure them in one interleaved run.

    What is kept is exported as `lonas-edge export` does it, its answers verified. The others are there to be timed, which does
    not depend on their answers: they are not verified, and gone afterwards.

    Args:
        source: Base model, adapter and search space.
        members: The networks, those first that the others are best compared with: maximal, heuristic.
        settings: Device and lengths.
        output: The search's directory, which exists.
        progress: Called with what is being done, and with the share done.
        keep: Names of those that stay, in `exported/NAME` of the output directory.
        table: What predicts; when None, this machine's table, where there is one.

    Returns:
        What each takes, in milliseconds, and what was predicted, in the order of the members.

    Raises:
        LonasEdgeError: If the device is not there, or a network cannot be exported or measured.
    """
    check_device(settings.device)
    table = table or kept_table(source, settings)
    for left in output.glob(f"{_SCRATCH}*"):  # of a killed run
        shutil.rmtree(left, ignore_errors=True)
    cache = cache_of(settings)
    with one_at_a_time(cache, progress), TemporaryDirectory(prefix=_SCRATCH, dir=output) as scratch:
        irs = []
        for place, (name, network) in enumerate(members):
            progress(f"Exporting {name} ({place + 1} of {len(members)})", place / len(members))
            if name in keep:
                folder = output / EXPORTED / name
                options = ExportOptions(network.weight_format, overwrite=True)
                export_apart(source, source.subnetwork(network.widths, name), folder, options)
            else:
                folder = kept_ir(source, network.widths, network.weight_format, Path(scratch), cache)
            irs.append((folder, network.weight_format))
        found = time_irs(irs, settings, progress)
    kinds = find_kinds(source)

    def beside(network: Evaluation, latency: Latency) -> dict[str, float]:
        """Fields of `Measured`: each metric, and its prediction where the table has the network's weight format."""
        own = {metric: 1e3 * getattr(latency, metric) for metric in settings.metrics}
        if table and network.weight_format in table.formats:
            given = kinds, network.widths, network.weight_format
            own |= {f"predicted_{metric}": table.predict(metric, *given) for metric in settings.metrics}
        return own

    return [
        Measured(name, network.number, network.weight_format, **beside(network, latency))
        for (name, network), latency in zip(members, found, strict=True)
    ]
