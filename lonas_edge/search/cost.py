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
    from lonas_edge.families.kinds import ModelKind
    from lonas_edge.network.source import Source
    from lonas_edge.search.dimensions import Cost as CostFunction
    from lonas_edge.search.latency_table import LatencyTable
    from lonas_edge.space.subnetwork import Sizes

END_TO_END = "end-to-end"


@dataclass(frozen=True)
class CostSettings:
    """How a cost is counted or measured."""

    weight_format: str = DEFAULT_FORMAT  # weight format of the IR
    device: str = "CPU"  # OpenVINO device
    prompt_len: int = 256  # prompt tokens; text tokens of a classifier
    new_tokens: int = 64  # generated tokens; 0 for a classifier
    batch_size: int = 1  # prompts or texts per batch
    threads: int | None = None  # CPU threads; one per physical core if None
    cache: Path | None = None  # directory of latency tables and of the networks behind them; the user's cache if None
    rounds: int = 12  # measurements of each network, over all starts
    starts: int = 4  # starts of the process of each network

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
    """A cost."""

    name: str  # on the command line and in records
    unit: str  # unit of the figure
    title: str  # in plots and tables
    timed: bool = False  # whether it is measured on an OpenVINO device
    generates: bool = False  # for a timed cost: whether it is one of models that generate tokens
    count: "Callable[[Sizes, str], float] | None" = None  # for other costs: computes it from the sizes and the weight format


COSTS = {
    cost.name: cost
    for cost in (
        Cost("tpot", "ms", "TPOT", timed=True, generates=True),
        Cost("ttft", "ms", "TTFT", timed=True, generates=True),
        Cost(END_TO_END, "ms", "end-to-end time", timed=True, generates=True),
        Cost("latency", "ms", "latency", timed=True),
        Cost("macs", "MACs", "MACs", count=lambda sizes, _: sizes.macs),
        Cost("weights", "weights", "linear weights", count=lambda sizes, _: sizes.linear_weights),
        Cost("bytes", "bytes", "bytes", count=lambda sizes, stored: sizes.bytes[stored]),
    )
}
COUNTED = tuple(name for name, cost in COSTS.items() if not cost.timed)


def default_cost(kind: "ModelKind") -> str:
    """Return the default of `--cost`."""
    return "tpot" if kind.generates else "latency"


def check_cost(name: str, kind: "ModelKind") -> None:
    """Refuse a timed cost that models of a kind do not have."""
    if COSTS[name].timed and COSTS[name].generates != kind.generates:
        others = [f"--cost {cost.name}" for cost in COSTS.values() if cost.timed and cost.generates == kind.generates]
        does = "generates tokens" if kind.generates else "generates no tokens"
        raise LonasEdgeError(f"--cost {name}: a {kind.name} {does}; use {' or '.join(others)}")


def context_faults(settings: CostSettings, context: int | None) -> list[str]:
    """Lengths beyond a model's context in tokens, by option; none where the context is not limited (None)."""
    length, options = settings.prompt_len + settings.new_tokens, f"--prompt-len {settings.prompt_len}"
    if context is None or length <= context:
        return []
    if not settings.new_tokens:
        return [f"{options}: beyond the model's context of {context} tokens; choose at most {context}"]
    options += f", --new-tokens {settings.new_tokens}"
    return [f"{options}: {length} tokens are beyond the model's context of {context}; choose lower ones"]


def cost_function(name: str, source: "Source", settings: CostSettings, table: "LatencyTable | None" = None) -> "CostFunction":
    """Make the function that computes a cost."""
    count = COSTS[name].count
    if count is not None:
        return lambda chosen: float(count(source.sizes(source.subnetwork(chosen)), settings.weight_format))
    from lonas_edge.search.latency_table import predict
    from lonas_edge.search.uniform import find_kinds

    assert table is not None
    curves, kinds, canonical = table.curves, find_kinds(source), source.elasticity.canonical
    if name != END_TO_END:
        return lambda chosen: predict(curves, name, kinds, canonical(chosen))
    first, further = (cost_function(metric, source, settings, table) for metric in settings.metrics)
    return lambda chosen: end_to_end(first(chosen), further(chosen), settings.new_tokens)


def end_to_end(ttft: float, tpot: float, new_tokens: int) -> float:
    """Return the time of a whole answer: the first token, and the others."""
    return ttft + (new_tokens - 1) * tpot
