"""Charts of a compression, small enough for a phone; they follow the colours that they are given."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Interval
from lonas_edge.pipeline.tables import cost_title, task_of
from lonas_edge.pipeline.tasks import Timed

if TYPE_CHECKING:
    from lonas_edge.space.picture import Layer

COLORS = 8
_WIDTH = 4.0  # inches: 288 points, about the width of a phone
_LINE = 0.19  # inches of a line of a legend
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # one fewer than the colours: 56 pairs
_LONGEST_LABEL = 42  # characters
_MOST_CANDIDATES, _MOST_STEPS, _MOST_SAMPLES = 600, 300, 800  # that are drawn in a figure
_LARGEST = 1e30  # a larger loss is a training that diverged
_SMALLEST_RANGE = 0.01  # nats of loss that an axis shows
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Ink:
    """Colours: of text and lines, and of data, in the order of the networks."""

    text: str
    series: tuple[str, ...]


class Look(NamedTuple):
    """How a network is drawn."""

    color: str
    marker: str


class Drawing(NamedTuple):
    """A matplotlib figure, and what it does not show."""

    figure: Any
    notes: list[str]


# after Okabe and Ito, darkened to a contrast of 3 or more on white
ON_WHITE = Ink("#222222", ("#0072b2", "#c84e00", "#007a5a", "#a8468a", "#6b6b6b", "#8a6a00", "#4b4bc3", "#8c2045"))


def settings(ink: Ink) -> dict[str, Any]:
    """Return matplotlib's settings to draw with: a `$` in a name starts no formula."""
    return {"text.parse_math": False, "font.size": 8.5, "text.color": ink.text}


def look(ink: Ink, index: int) -> Look:
    """Return the look of a network by its position."""
    return Look(ink.series[index % COLORS], _MARKERS[index % len(_MARKERS)])


def write_png(record: CompressRecord, path: Path) -> None:
    """Plot latency and quality of the networks as a PNG file."""
    import warnings

    import matplotlib

    with matplotlib.rc_context({**settings(ON_WHITE), "font.size": 10}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of names in other scripts
        drawing = measured(record, ON_WHITE, (8.0, 4.6))
        title = _short(record.source, 60)
        processor = _short(str(record.machine.get("processor", "")), 60)
        tokens = f"{record.prompt_len}{f' + {record.new_tokens}' if record.new_tokens else ''} tokens"
        drawing.figure.suptitle(f"{title}\n{', '.join(filter(None, (processor, tokens)))}", fontsize=10)
        drawing.figure.savefig(path, dpi=120, metadata={"Software": None})  # the same record gives the same file


def measured(record: CompressRecord, ink: Ink, size: tuple[float, float] = (_WIDTH, 2.6)) -> Drawing:
    """Draw the last latency and the difference of the first quality of each network with 95 % intervals."""
    timed, column = task_of(record).latencies[-1], task_of(record).qualities[0]
    figure, [axis] = _figure(size[0], size[1] + _LINE * len(record.networks), ink)
    missing = []
    for index, network in enumerate(record.networks):
        time, found = network.latency[timed.name].median, network.quality[column.name].difference
        change = found or (Interval(0.0, 0.0, 0.0) if index == 0 else None)
        if change is None or not (_drawable(change.value) and _drawable(time.value)):
            missing.append(network.name)
            continue
        color, marker = look(ink, index)
        bars = {"xerr": _error_bar(time), "yerr": _error_bar(change) if found else None}
        style: dict[str, Any] = {"color": color, "marker": marker, "capsize": 3, "elinewidth": 1.2, "linestyle": "none"}
        axis.errorbar([time.value], [change.value], **bars, **style, label=_short(network.name), zorder=3)
    axis.axhline(0, color=ink.text, linewidth=0.8, alpha=0.6)
    axis.margins(0.12)
    low, high = axis.get_ylim()
    if high - low < _SMALLEST_RANGE:  # one network, or equal ones
        axis.set_ylim((low + high - _SMALLEST_RANGE) / 2, (low + high + _SMALLEST_RANGE) / 2)
    axis.set(xlabel=f"{timed.title} in ms (lower is faster)", ylabel=f"{column.axis}\n(lower is better)")
    _legend(figure, axis)
    return Drawing(figure, [f"Not shown, without a finite figure: {', '.join(map(_short, missing))}."] if missing else [])


def search(record: CompressRecord, ink: Ink) -> Drawing | None:
    """Draw cost and distance of the searched sub-networks, the Pareto front and the picks; None without any."""
    distance = task_of(record).distance
    finite = [point for point in record.candidates if _drawable(point.cost) and _drawable(point.kl)]
    shown = [point for point in finite if point.kl > 0] or finite
    omitted = {
        "without a finite figure": len(record.candidates) - len(finite),
        f"with a {distance.short} of 0": len(finite) - len(shown),
    }
    notes = [f"Not shown: {count} {reason}." for reason, count in omitted.items() if count]
    if not shown:
        return None
    others = [point for point in shown if not point.optimal and not point.picks]
    drawn = _spread(others, _MOST_CANDIDATES)
    notes += [f"{len(drawn)} of {len(others)} other networks are drawn."] if len(drawn) < len(others) else []
    optimal = sorted((point for point in shown if point.optimal), key=lambda point: (point.cost, -point.kl))
    picks = sorted((point for point in shown if point.picks), key=lambda point: -point.cost)
    figure, [axis] = _figure(_WIDTH, 2.6 + _LINE * (2 + len(picks)), ink)
    if drawn:
        style: dict[str, Any] = {"color": ink.text, "alpha": 0.35, "s": 12, "linewidths": 0}
        axis.scatter(_costs(drawn), _kls(drawn), **style, label=f"evaluated ({len(others)})")
    line: dict[str, Any] = {"color": ink.text, "linewidth": 1, "drawstyle": "steps-post", "marker": "o", "markersize": 3.5}
    if optimal:
        axis.plot(_costs(optimal), _kls(optimal), **line, label=f"Pareto front ({len(optimal)})")
    for index, point in enumerate(picks):
        color, marker = _look_of_pick(record, ink, point, index)
        place = {"color": color, "marker": marker, "s": 75, "edgecolors": ink.text, "linewidths": 0.8, "zorder": 4}
        axis.scatter(
            [point.cost],
            [point.kl],
            **place,
            label=_short(f"{', '.join(point.picks)}: {point.cost:.2f}x, {distance.short} {point.kl:.3g}"),
        )
    if shown[0].kl > 0:
        _logarithmic(axis, axis.yaxis, _kls(shown))
    axis.set(xlabel=f"{cost_title(record.cost)} / unpruned", ylabel=f"{distance.axis} (lower is better)")
    _legend(figure, axis)
    return Drawing(figure, notes)


def kept(picture: "Sequence[Layer]", ink: Ink, color: str) -> Drawing | None:
    """Draw the kept part of attention and MLP in each layer; None if there is nothing to draw."""
    kinds = list(dict.fromkeys(part.kind for layer in picture for part in layer))
    if not kinds:
        return None
    figure, axes = _figure(_WIDTH, 0.5 + 0.95 * len(kinds), ink, rows=len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        parts = [(index, part) for index, layer in enumerate(picture) for part in layer if part.kind == kind]
        layers = [index for index, _ in parts]
        removed = [index for index, part in parts if part.kept == 0]
        axis.add_patch(_bars([(index, 1.0) for index in layers], color=ink.text, alpha=0.16))
        axis.add_patch(_bars([(index, part.kept / max(part.full, 1)) for index, part in parts], color=color))
        axis.plot(
            removed,
            [0.5] * len(removed),
            "x",
            color=ink.text,
            markersize=max(3.5, min(5, 160 / len(picture))),
            markeredgewidth=1,
        )
        share = sum(part.kept for _, part in parts) / max(sum(part.full for _, part in parts), 1)
        unit = {"attention": "attention: {} of heads kept", "mlp": "MLP: {} of width kept"}.get(kind, f"{kind}: {{}} kept")
        blocks = f"{len(removed)} of {len(parts)} blocks removed"
        axis.set_title(f"{unit.format(f'{100 * share:.0f} %')}, {blocks}", loc="left", fontsize="medium")
        axis.set(ylim=(0, 1), yticks=[0, 0.5, 1], yticklabels=["0 %", "50 %", "100 %"], xlim=(-0.6, len(picture) - 0.4))
        axis.grid(visible=False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("layer")
    return Drawing(figure, [])


def training(curve: Curve, ink: Ink, title: str) -> Drawing | None:
    """Draw the training loss and the held-out loss, whose title is given; None without finite losses."""
    losses, held_out = _finite_pairs(curve.losses), _finite_pairs(curve.held_out)
    if not losses and not held_out:
        return None
    notes = []
    infinite = len(curve.losses) + len(curve.held_out) - len(losses) - len(held_out)
    if infinite:
        notes.append(f"{infinite} losses are not finite and not shown.")
    bins = _binned(losses, _MOST_STEPS)
    if len(bins) < len(losses):
        notes.append(f"Training loss: means of {math.ceil(len(losses) / len(bins))} consecutive values.")
    apart = curve.distilled and bool(bins) and bool(held_out)  # a KL divergence is much smaller than a cross-entropy
    figure, axes = _figure(_WIDTH, 2.2 + 2 * _LINE + 1.2 * apart, ink, rows=1 + apart)
    dots = {"marker": "." if len(bins) < 3 else ""}
    if held_out:
        axes[0].plot(*zip(*held_out, strict=True), "o-", color=ink.series[1], markersize=3.5, linewidth=1.6, label="held-out")
        _usual_range(axes[0], [], [loss for _, loss in held_out])
    if bins:
        label = "training (KL from the teacher)" if curve.distilled else "training"
        axes[-1].plot(*zip(*bins, strict=True), color=ink.series[4], linewidth=1, **dots, label=label)
        others = [] if apart else [loss for _, loss in held_out]
        _usual_range(axes[-1], sorted(loss for _, loss in bins), others)
    axes[-1].set(xlabel="step")
    for axis in axes:
        axis.set(ylabel="nats per token" if apart else title)
    _legend(figure, *axes)
    return Drawing(figure, notes)


def _usual_range(axis: Any, ordered: Sequence[float], others: Sequence[float]) -> None:
    """Limit the y axis to the usual values: 98 % of the ordered ones, and all others."""
    usual = [*ordered[: max(1, math.ceil(len(ordered) * 0.98))], *others]
    low, high = min(usual), max(usual)
    if high > low:
        axis.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def latency(record: CompressRecord, timed: Timed, ink: Ink) -> Drawing | None:
    """Draw all samples of a latency, and the medians with their intervals; None without any."""
    networks = record.networks
    samples = [sorted(filter(_drawable, network.latency[timed.name].samples)) for network in networks]
    values = [value for own in samples for value in own]
    values += [part for network in networks if _drawable(part := network.latency[timed.name].median.value)]
    if not values:
        return None
    figure, [axis] = _figure(_WIDTH, 0.6 + 0.5 * len(networks), ink)
    most = max(20, _MOST_SAMPLES // len(networks))
    for index, (network, own) in enumerate(zip(networks, samples, strict=True)):
        color, marker = look(ink, index)
        drawn = _spread(own, most)
        heights = [index + 0.3 * ((place * _GOLDEN) % 1 - 0.5) for place in range(len(drawn))]
        axis.plot(drawn, heights, marker, color=color, alpha=0.5, markersize=3.5, markeredgecolor="none")
        median = network.latency[timed.name].median
        if _drawable(median.value):
            style = {"color": ink.text, "capsize": 4, "elinewidth": 1.4, "marker": "|", "markersize": 13, "zorder": 4}
            axis.errorbar([median.value], [index], xerr=_error_bar(median), **style)
        axis.text(0.01, index - 0.28, _short(network.name), transform=axis.get_yaxis_transform(), va="bottom")
    if min(values) > 0 and max(values) > 4 * min(values):
        _logarithmic(axis, axis.xaxis, values)
    axis.set(xlabel=f"{timed.title} in ms", yticks=[], ylim=(len(networks) - 0.6, -0.75))
    axis.spines["left"].set_visible(False)
    fewer = max(map(len, samples)) > most
    return Drawing(figure, [f"At most {most} samples of each network are drawn, evenly spaced by rank."] if fewer else [])


def _figure(width: float, height: float, ink: Ink, rows: int = 1) -> tuple[Any, list[Any]]:
    """Make a figure and its axes in the given colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(ink.text)
        axis.tick_params(which="both", colors=ink.text, length=2.5, labelsize="medium")
        axis.xaxis.label.set_color(ink.text)
        axis.yaxis.label.set_color(ink.text)
        axis.grid(color=ink.text, alpha=0.16, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _bars(heights: Iterable[tuple[int, float]], **style: Any) -> Any:
    """Draw bars as one shape, which takes less than half of the space of single ones."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Shape

    shapes = [
        Shape([(x - 0.4, 0), (x - 0.4, height), (x + 0.4, height), (x + 0.4, 0), (x - 0.4, 0)], closed=True)
        for x, height in heights
        if height > 0
    ]
    return PathPatch(Shape.make_compound_path(*shapes), linewidth=0, **style)


def _legend(figure: Any, axis: Any, *others: Any, columns: int = 1) -> None:
    """Put one legend of all axes below them, where it covers no data."""
    handles, labels = axis.get_legend_handles_labels()
    for other in others:
        handles, labels = [both + more for both, more in zip((handles, labels), other.get_legend_handles_labels(), strict=True)]
    handles = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]  # markers without error bars
    if handles:
        color = axis.xaxis.label.get_color()
        style = {"frameon": False, "labelcolor": color, "borderpad": 0.2, "handlelength": 1.6}
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, **style)


def _logarithmic(axis: Any, direction: Any, values: Sequence[float]) -> None:
    """Make the x or y axis logarithmic, with a few plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if high < 2 * low:  # a logarithmic axis would have one number or none
        return
    set_scale = axis.set_xscale if direction is axis.xaxis else axis.set_yscale
    set_scale("log")
    decades = math.log10(high) - math.log10(low)
    direction.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=8))
    direction.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    direction.set_minor_formatter(NullFormatter())


def _look_of_pick(record: CompressRecord, ink: Ink, point: Candidate, index: int) -> Look:
    """Return the look of the first measured network of a pick, or one that no network has."""
    named = (place for place, network in enumerate(record.networks) if network.target in point.picks)
    return look(ink, next(named, len(record.networks) + index))


def _error_bar(interval: Interval) -> list[list[float]] | None:
    """Return the lengths of an error bar downwards and upwards."""
    lengths = [interval.value - interval.low, interval.high - interval.value]
    return [[max(length, 0.0)] for length in lengths] if all(map(_drawable, lengths)) else None


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST


def _costs(points: Iterable[Candidate]) -> list[float]:
    return [point.cost for point in points]


def _kls(points: Iterable[Candidate]) -> list[float]:
    return [point.kl for point in points]


def _finite_pairs(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, loss) for step, loss in pairs if _drawable(loss)]


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _binned(pairs: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """Return the means of at most `most` groups of consecutive pairs."""
    size = math.ceil(len(pairs) / most) or 1
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [(sum(step for step, _ in group) / len(group), sum(loss for _, loss in group) / len(group)) for group in groups]


def _short(text: str, limit: int = _LONGEST_LABEL) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
