"""The charts of a compression: matplotlib figures, about as wide as a phone."""

import io
from typing import Any

from lonas_edge.bench.statistics import Interval
from lonas_edge.pipeline.record import CompressRecord, Curve, Network
from lonas_edge.pipeline.tasks import Profile
from lonas_edge.search.cost import COSTS

# after Okabe and Ito, darkened to a contrast of 3 or more on white
COLORS = ("#0072b2", "#c84e00", "#007a5a", "#a8468a", "#6b6b6b", "#8a6a00", "#4b4bc3", "#8c2045")
MARKERS = "osD^vPX"
# a `$` starts no formula
_SETTINGS = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "lonas-edge", "font.size": 8.5}


def image(figure: Any, kind: str) -> bytes:
    """Return a figure as a file, `png` or `svg`; the same figure gives the same bytes."""
    import matplotlib

    written = io.BytesIO()
    options: dict[str, Any] = {"dpi": 120, "metadata": {"Software": None}} if kind == "png" else {"metadata": {"Date": None}}
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(written, format=kind, **options)
    return written.getvalue()


def networks(record: CompressRecord, profile: Profile, width: float = 4.0) -> Any:
    """Draw latency and difference in quality of each network with 95 % intervals."""
    timed, column = profile.latencies[-1], record.qualities[0]
    figure, [axis] = _figure(width, 2.6 + 0.19 * len(record.networks))
    for index, network in enumerate(record.networks):
        time = network.latency[timed.name].median
        change = network.quality[column.name].difference or Interval(0.0, 0.0, 0.0)
        bars: dict[str, Any] = {"xerr": _error_bar(time), "yerr": _error_bar(change), "capsize": 3, "linestyle": "none"}
        axis.errorbar([time.value], [change.value], **bars, **_look(index), label=network.name)
    axis.axhline(0, color="black", linewidth=0.8)
    better = "higher" if record.metric else "lower"
    axis.set(xlabel=f"{timed.title} in ms (lower is faster)", ylabel=f"{column.title} Δ{column.unit} ({better} is better)")
    figure.legend(loc="outside lower left", frameon=False, fontsize=8.5)
    return figure


def candidates(record: CompressRecord, profile: Profile) -> Any:
    """Draw cost and distance of the searched sub-networks, the Pareto front and the picks."""
    points = record.candidates
    optimal = sorted((each.cost, each.kl) for each in points if each.optimal)
    picks = [each for each in points if each.picks]
    figure, [axis] = _figure(4.0, 2.6 + 0.19 * (2 + len(picks)))
    axis.scatter([each.cost for each in points], [each.kl for each in points], color="gray", s=12, label="evaluated")
    axis.plot(*zip(*optimal, strict=True), color="black", linewidth=1, drawstyle="steps-post", label="Pareto front")
    targets = [network.target for network in record.networks]
    for each in picks:
        label = f"{', '.join(each.picks)}: {each.cost:.2f}x, {each.kl:.3g}"
        look = _look(next((targets.index(target) for target in each.picks if target in targets), len(targets)))
        axis.plot([each.cost], [each.kl], **look, markersize=8, linestyle="none", label=label)
    axis.set_yscale("symlog", linthresh=min((each.kl for each in points if each.kl > 0), default=1.0))
    axis.yaxis.set_major_formatter("{x:g}")  # powers of ten would be formulas
    axis.set(xlabel=f"{COSTS[record.cost].title} / unpruned", ylabel=f"{profile.distance} (lower is better)")
    figure.legend(loc="outside lower left", frameon=False, fontsize=8.5)
    return figure


def kept_parts(network: Network, index: int) -> Any:
    """Draw the kept part of attention and MLP in each layer of a sub-network, the network at `index` of a record."""
    kinds = list(dict.fromkeys(part.kind for layer in network.removed for part in layer))
    figure, axes = _figure(4.0, 0.5 + 0.95 * len(kinds), rows=len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        parts = {number: part for number, layer in enumerate(network.removed) for part in layer if part.kind == kind}
        axis.bar(list(parts), [1.0] * len(parts), color="lightgray")
        axis.bar(list(parts), [part.kept / max(part.full, 1) for part in parts.values()], color=_look(index)["color"])
        removed = sum(part.kept == 0 for part in parts.values())
        axis.set_title(f"{kind.replace('mlp', 'MLP')}: {removed} of {len(parts)} blocks removed", loc="left", fontsize="medium")
        axis.set(yticks=[0, 1], yticklabels=["0 %", "100 %"])
    axes[-1].set_xlabel("layer")
    return figure


def losses(curve: Curve, profile: Profile) -> Any:
    """Draw the losses of a training. A KL divergence is much smaller than a cross-entropy, and has axes of its own."""
    figure, axes = _figure(4.0, 2.8 + 1.2 * curve.distilled, rows=1 + curve.distilled)
    if curve.losses:
        label = "training (KL from the teacher)" if curve.distilled else "training"
        axes[-1].plot(*zip(*curve.losses, strict=True), color=COLORS[4], linewidth=1, label=label)
    if curve.held_out:
        axes[0].plot(*zip(*curve.held_out, strict=True), "o-", color=COLORS[1], markersize=3.5, label="held-out")
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.set_ylabel("nats per token" if curve.distilled else profile.loss)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8.5)
    return figure


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    """Make a figure and its axes, one below the other."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
        axis.set_axisbelow(True)
    return figure, axes


def _look(index: int) -> dict[str, str]:
    """Colour and marker of a network by its position."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def _error_bar(interval: Interval) -> list[list[float]]:
    """Lengths of an error bar downwards and upwards."""
    return [[interval.value - interval.low], [interval.high - interval.value]]
