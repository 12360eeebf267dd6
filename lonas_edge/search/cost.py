"""Costs of a sub-network; lower is better. Sizes follow from the configuration, latency from a device's latency table.

A registry for the command line: nothing heavy is imported before a cost is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.bench.variants import Case
from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import DEFAULT_FORMAT

if TYPE_CHECKING:
    from lonas_edge.families.tasks import Task
    from lonas_edge.network.source import Source
    from lonas_edge.search.dimensions import Cost as CostFunction
    from lonas_edge.search.latency_table import LatencyTable
    from lonas_edge.space.complexity import Sizes


@dataclass(frozen=True)
class CostSettings:
    """How a cost is counted or measured.

    Attributes:
        weight_format: Weight format of the IR.
        device: OpenVINO device.
        prompt_len: Prompt tokens; text tokens of a classifier.
        new_tokens: Generated tokens; 0 for a classifier.
        batch_size: Prompts or texts per batch.
        threads: CPU threads; one per physical core if None.
        cache: Directory of latency tables and of the networks behind them; the user's cache if None.
        rounds: Measurements of each network, over all starts.
        starts: Starts of the process of each network.
    """

    weight_format: str = DEFAULT_FORMAT
    device: str = "CPU"
    prompt_len: int = 256
    new_tokens: int = 64
    batch_size: int = 1
    threads: int | None = None
    cache: Path | None = None
    rounds: int = 12
    starts: int = 4

    @property
    def case(self) -> Case:
        """Lengths and batch size of each measurement."""
        return Case(self.prompt_len, self.new_tokens, self.batch_size)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The measured fields of `bench.latency.Latency`."""
        return ("ttft", "tpot") if self.new_tokens else ("latency",)


@dataclass(frozen=True)
class Cost:
    """A cost.

    Attributes:
        name: On the command line and in records.
        unit: Unit of the figure.
        described: For the help text.
        title: In plots and tables.
        timed: Whether it is measured on an OpenVINO device.
        generates: For a timed cost: whether it is one of models that generate tokens.
        count: For other costs: computes it from the sizes and the weight format.
    """

    name: str
    unit: str
    described: str
    title: str
    timed: bool = False
    generates: bool = False
    count: "Callable[[Sizes, str], float] | None" = None


COSTS = {
    cost.name: cost
    for cost in (
        Cost("tpot", "ms", "time per output token on --device", "TPOT", timed=True, generates=True),
        Cost("ttft", "ms", "time to first token on --device", "TTFT", timed=True, generates=True),
        Cost("latency", "ms", "time per batch of a classifier on --device", "latency", timed=True),
        Cost("macs", "MACs", "multiply-accumulates of the linear layers", "MACs", count=lambda sizes, _: sizes.macs),
        Cost(
            "weights", "weights", "weights of the linear layers", "linear weights", count=lambda sizes, _: sizes.linear_weights
        ),
        Cost("bytes", "bytes", "bytes of the compressed weights", "bytes", count=lambda sizes, stored: sizes.bytes[stored]),
    )
}
COUNTED = tuple(name for name, cost in COSTS.items() if not cost.timed)


def default_cost(task: "Task") -> str:
    """The cost that is searched unless another one is named."""
    return "tpot" if task.generates else "latency"


def check_cost(name: str, task: "Task") -> None:
    """Refuse a timed cost that models of a task do not have."""
    if COSTS[name].timed and COSTS[name].generates != task.generates:
        others = [f"--cost {cost.name}" for cost in COSTS.values() if cost.timed and cost.generates == task.generates]
        does = "generates tokens" if task.generates else "generates no tokens"
        raise LonasEdgeError(f"--cost {name}: a {task.name} {does}; use {' or '.join(others)}")


def cost_function(name: str, source: "Source", settings: CostSettings, table: "LatencyTable | None" = None) -> "CostFunction":
    """Make the function that computes a cost.

    Args:
        name: One of `COSTS`.
        source: Base model, adapter and search space.
        settings: Weight format and measurement settings.
        table: The latency table that a timed cost is predicted from.

    Returns:
        The cost of a network's widths; latencies in milliseconds.
    """
    count = COSTS[name].count
    if count is not None:
        return lambda chosen: float(count(source.sizes(source.subnetwork(chosen)), settings.weight_format))
    from lonas_edge.search.uniform import find_kinds

    assert table is not None
    known, kinds, canonical = table, find_kinds(source), source.elasticity.canonical
    return lambda chosen: known.predict(name, kinds, canonical(chosen))
