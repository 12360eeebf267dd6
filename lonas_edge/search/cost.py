"""What a network costs, lower is better: one object each. Counted from configurations alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lonas_edge.network.source import Source
from lonas_edge.space.complexity import Sizes

Progress = Callable[[str, float | None], None]
CostFunction = Callable[[Sequence[int], str], float]


@dataclass(frozen=True)
class Cost:
    """One cost of one network at one weight format; lower is better."""

    name: str
    unit: str
    described: str
    needs_device: bool = False


@dataclass(frozen=True)
class CostSettings:
    """How a cost is counted or measured."""

    device: str = "CPU"
    prompt_len: int = 256
    new_tokens: int = 64
    weight_formats: tuple[str, ...] = ("int8",)
    threads: int | None = None
    cache: Path | None = None


COSTS = {
    cost.name: cost
    for cost in (
        Cost("macs", "MACs", "multiply-accumulates of the linear layers for one sequence, adapters unmerged"),
        Cost("weights", "weights", "weights of the linear layers, adapters unmerged"),
        Cost("bytes", "bytes", "bytes of the merged weights at the weight format"),
    )
}


def cost_function(
    name: str, source: Source, settings: CostSettings, progress: Progress = lambda _what, _done: None
) -> CostFunction:
    """How a cost is found.

    Args:
        name: One of `COSTS`.
        source: Base model, adapter and search space.
        settings: How it is counted.
        progress: Called with what is being done.

    Returns:
        The cost of chosen widths, in group order, at a weight format.
    """
    count: dict[str, Callable[[Sizes, str], float]] = {
        "macs": lambda sizes, _format: sizes.macs,
        "weights": lambda sizes, _format: sizes.linear_weights,
        "bytes": lambda sizes, weight_format: sizes.bytes[weight_format],
    }
    return lambda chosen, weight_format: float(count[name](source.sizes(chosen), weight_format))
