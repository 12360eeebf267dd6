"""What a network costs, lower is better: one object each. Sizes follow from configurations, latency from a device's table.

A registry for the command line: nothing heavy is imported before something is counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lonas_edge.errors import LonasEdgeError
from lonas_edge.progress import Progress, silent
from lonas_edge.search.timing_settings import CostSettings

if TYPE_CHECKING:
    from lonas_edge.families.tasks import Task
    from lonas_edge.network.source import Source
    from lonas_edge.search.latency_table import LatencyTable
    from lonas_edge.space.complexity import Sizes

CostFunction = Callable[[Sequence[int], str], float]  # of chosen widths, in group order, at a weight format


@dataclass(frozen=True)
class Cost:
    """One cost of one network at one weight format; lower is better.

    Attributes:
        name: What it is called on the command line and in records.
        unit: Of the figure.
        described: What the command line's help says of it.
        title: What it is called in plots and tables.
        needs_device: Whether it is measured on an OpenVINO device.
        generates: Where it is measured, whether on models that generate tokens, or on those that do not.
        count: How it is counted where it is not: from sizes and the weight format.
    """

    name: str
    unit: str
    described: str
    title: str
    needs_device: bool = False
    generates: bool = False
    count: "Callable[[Sizes, str], float] | None" = None


COSTS = {
    cost.name: cost
    for cost in (
        Cost(
            "macs",
            "MACs",
            "multiply-accumulates of the linear layers for one sequence, adapters unmerged",
            "MACs",
            count=lambda sizes, _: sizes.macs,
        ),
        Cost(
            "weights",
            "weights",
            "weights of the linear layers, adapters unmerged",
            "linear weights",
            count=lambda sizes, _: sizes.linear_weights,
        ),
        Cost(
            "bytes",
            "bytes",
            "bytes of the merged weights at the weight format",
            "bytes",
            count=lambda sizes, weight_format: sizes.bytes[weight_format],
        ),
        Cost("ttft", "ms", "time to first token on --device, from its latency table", "TTFT", True, generates=True),
        Cost("tpot", "ms", "time per output token on --device, from its latency table", "TPOT", True, generates=True),
        Cost("latency", "ms", "of a classifier, time of a batch of texts on --device, from its latency table", "latency", True),
    )
}


def check_cost(name: str, task: "Task") -> None:
    """Refuse a time that models of a task do not have.

    Args:
        name: One of `COSTS`.
        task: What the model is for.

    Raises:
        LonasEdgeError: If it is one; those that there are instead are named.
    """
    if COSTS[name].needs_device and COSTS[name].generates != task.generates:
        others = [f"--cost {cost.name}" for cost in COSTS.values() if cost.needs_device and cost.generates == task.generates]
        does = "generates tokens" if task.generates else "generates no tokens"
        raise LonasEdgeError(f"--cost {name}: a {task.name} {does}; its times are {' and '.join(others)}")


def cost_function(
    name: str,
    source: "Source",
    settings: CostSettings,
    progress: Progress = silent,
    table: "LatencyTable | None" = None,
) -> CostFunction:
    """How a cost is found.

    Args:
        name: One of `COSTS`.
        source: Base model, adapter and search space.
        settings: How it is counted or measured.
        progress: Called with what is being done, and with the share done.
        table: The latency table to use, such as that of the study that other machines share; when None, this machine's, which
            is measured where there is none yet.

    Returns:
        The cost of chosen widths, in group order, at a weight format; latency in milliseconds.

    Raises:
        LonasEdgeError: If the device is not there, or its latency cannot be measured.
    """
    count = COSTS[name].count
    if count is not None:
        return lambda chosen, weight_format: float(count(source.sizes(source.subnetwork(chosen)), weight_format))
    from lonas_edge.search.latency_table import open_table
    from lonas_edge.search.uniform import find_kinds

    known, kinds = table or open_table(source, settings, progress), find_kinds(source)
    canonical = source.elasticity.canonical  # a width inside a removed block costs nothing more
    return lambda chosen, weight_format: known.predict(name, kinds, canonical(chosen), weight_format)
