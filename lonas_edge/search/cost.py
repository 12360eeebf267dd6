"""What a search measures: the quality of a network and its cost. Lower is better. Nothing heavy is imported here.

Qualities are measured in one super-network, loaded once. Sizes follow from the configuration, latency from a device's latency
table (`latency_table`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lonas_edge.bench.variants import Case
from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import DEFAULT_FORMAT

if TYPE_CHECKING:
    from lonas_edge.families import ModelKind
    from lonas_edge.network.source import Source
    from lonas_edge.space.subnetwork import Sizes

END_TO_END = "end-to-end"
CostFunction = Callable[[Sequence[int]], float]  # of a network's widths


QUALITIES = {"kl": "KL from the unpruned network", "loss": "loss"}  # titles in plots; both in nats


@dataclass(frozen=True)
class Cost:
    """A cost."""

    name: str  # on the command line and in records
    unit: str
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
NEW_TOKENS = 64  # of a latency


@dataclass(frozen=True)
class CostSettings:
    """How a cost is counted or measured."""

    weight_format: str = DEFAULT_FORMAT  # weight format of the IR
    device: str = "CPU"  # OpenVINO device
    prompt_len: int = 256  # prompt tokens; text tokens of an encoder
    new_tokens: int = NEW_TOKENS  # generated tokens; 0 for an encoder

    @property
    def case(self) -> Case:
        """Lengths of each measurement."""
        return Case(self.prompt_len, self.new_tokens)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The measured fields of `bench.latency.Latency`."""
        return ("ttft", "tpot") if self.new_tokens else ("latency",)


def default_cost(kind: "ModelKind") -> str:
    """Return the default of `--cost`."""
    return "tpot" if kind.generates else "latency"


def check_cost(name: str, kind: "ModelKind") -> None:
    """Refuse a timed cost that models of a kind do not have."""
    if COSTS[name].timed and COSTS[name].generates != kind.generates:
        others = [f"--cost {cost.name}" for cost in COSTS.values() if cost.timed and cost.generates == kind.generates]
        does = "generates tokens" if kind.generates else "generates no tokens"
        raise LonasEdgeError(f"--cost {name}: a {kind.name} {does}; use {' or '.join(others)}")


def context_errors(settings: CostSettings, context: int | None) -> list[str]:
    """List lengths beyond a model's context in tokens; none where the context is not limited (None)."""
    length = settings.prompt_len + settings.new_tokens
    if context is None or length <= context:
        return []
    options = f"--prompt-len {settings.prompt_len}"
    if settings.new_tokens:
        options += f" and {settings.new_tokens} generated tokens"
    return [f"{options}: {length} tokens are beyond the model's context of {context}; choose a lower length"]


def counted_cost(name: str, source: "Source", weight_format: str) -> CostFunction:
    """Make the function that computes a cost from the sizes of a network."""
    count = COSTS[name].count
    assert count is not None
    return lambda widths: float(count(source.sizes(source.subnetwork(widths)), weight_format))
