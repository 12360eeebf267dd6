"""What a search found, as people read it: every evaluation in order as CSV, two plots, and tables for the terminal."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.bench.variants import Case
from lonas_edge.files import replace_text
from lonas_edge.search.cost import COSTS
from lonas_edge.search.record import Evaluation, Measured, SearchRecord

if TYPE_CHECKING:
    from lonas_edge.search.latency_table import LatencyTable

CSV, PROGRESSION, FRONT = "search_progression.csv", "search_progression.png", "front.png"

_TIMES = tuple(name for name, cost in COSTS.items() if cost.needs_device)

Table = tuple[str, list[str], list[list[str]]]  # title, headings, rows

_PREFIXES = ("", "k", "M", "G", "T", "P")
_HEAT = "▁▂▃▄▅▆▇█"
_ORDERS_OF_MAGNITUDE = 3  # that the heat lines tell apart
_MARKERS = "osD^v<>P"  # of weight formats
_NAMED = {"maximal": ("s", "tab:blue"), "heuristic": ("D", "tab:orange"), "minimal": ("v", "tab:brown")}
_PICKS = ("tab:red", "tab:purple", "tab:green", "tab:pink", "tab:olive", "tab:cyan")
_PIXELS = {"dpi": 120, "metadata": {"Software": None}}  # the same record gives the same file


def write(record: SearchRecord, folder: Path) -> list[Path]:
    """Write search_progression.csv and .png, and front.png.

    Args:
        record: The search, of one evaluation or more.
        folder: An existing directory.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("Agg")
    replace_text(folder / CSV, to_csv(record))
    for name, draw in ((PROGRESSION, _progression), (FRONT, _front)):
        draw(record).savefig(folder / name, **_PIXELS)
    return [folder / name for name in (CSV, PROGRESSION, FRONT)]


def to_csv(record: SearchRecord) -> str:
    """One line for each evaluation, in order: the sub-network, its cost and its quality, which proposed it, what it took."""
    output = io.StringIO()
    table = csv.writer(output, lineterminator="\n")
    head = ["evaluation", "widths", "weight_format", record.cost, record.quality, "hypervolume", "origin", "seconds"]
    table.writerow(head)
    for place, one in enumerate(record.evaluations):
        area = record.hypervolume[place] if place < len(record.hypervolume) else ""
        widths = json.dumps(list(one.widths))
        table.writerow([one.number, widths, one.weight_format, one.cost, one.quality, area, one.origin, one.seconds])
    return output.getvalue()


class _Axis:
    """A cost in a unit that people read: with a prefix where numbers are large."""

    def __init__(self, name: str, largest: float):
        known = COSTS[name]
        power = 0 if known.unit == "ms" else min(int(math.log10(max(largest, 1)) // 3), len(_PREFIXES) - 1)
        self.divisor = 1000.0**power
        unit = {"MACs": "MACs", "bytes": "B", "ms": "ms"}.get(known.unit, "")
        self.unit = f"{_PREFIXES[power]}{unit}"
        self.label = f"{known.title} in {self.unit}" if unit in ("B", "ms") else f"{known.title} ({self.unit})"

    def __call__(self, value: float) -> float:
        return value / self.divisor

    def shown(self, value: float) -> str:
        """A cost with its unit."""
        return f"{self(value):.4g} {self.unit}".rstrip()


def _cost_axis(record: SearchRecord) -> _Axis:
    return _Axis(record.cost, max(one.cost for one in record.evaluations))


def _quality_label(record: SearchRecord) -> str:
    better = "higher is better" if record.quality == "accuracy" else "lower is better"
    names = {"kl": "KL from the maximal network", "loss": "loss of the right answers", "accuracy": "right answers"}
    return f"{names.get(record.quality, record.quality)} in {record.units[record.quality]} ({better})"


def _title(record: SearchRecord) -> str:
    """The model, and the device where the cost depends on one."""
    model, formats = record.searched.base.name, ", ".join(record.settings.get("weight_formats", ()))
    if not COSTS[record.cost].needs_device:
        return f"{model}: {len(record.evaluations)} networks, {formats}"
    told = record.settings
    where = f"{told['device']} ({record.conditions.get('processor', 'unknown')})"
    case = Case(told["prompt_len"], told["new_tokens"], told.get("batch_size", 1))
    return f"{model}: {len(record.evaluations)} networks, {formats}\n{where}, {case}"


def _known(record: SearchRecord) -> dict[str, Evaluation]:
    """Maximal, heuristic and minimal, as far as they were evaluated."""
    return {one.name: record.evaluations[one.evaluation] for one in record.named if one.name in _NAMED}


def _picks(record: SearchRecord) -> dict[str, Evaluation]:
    return {one.name: record.evaluations[one.evaluation] for one in record.picks}


def _told(record: SearchRecord, name: str, one: Evaluation, scale: _Axis) -> str:
    """A legend's line: name and figures."""
    stored = f", {one.weight_format}" if _several(record) else ""
    quality = f"{one.quality:.3g} {record.units[record.quality]}"
    return f"{name.removeprefix('pick:')}: {scale.shown(one.cost)}, {quality}{stored}"


def _several(record: SearchRecord) -> bool:
    return len({one.weight_format for one in record.evaluations}) > 1


def _progression(record: SearchRecord) -> Any:
    """The reference's plot: efficiency and accuracy of every evaluation, its order by colour; below, the hypervolume."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8 if record.hypervolume else 5.5), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=(2.4, 1)) if record.hypervolume else [figure.subplots()]
    axis, scale = axes[0], _cost_axis(record)
    costs, qualities = [scale(one.cost) for one in record.evaluations], [one.quality for one in record.evaluations]
    order = axis.scatter(costs, qualities, c=range(1, len(costs) + 1), cmap="viridis", marker="D", s=16, alpha=0.8)
    figure.colorbar(order, ax=axis, label="evaluation, in order")
    _draw_named(record, axis, scale)
    axis.set(xlabel=scale.label, ylabel=_quality_label(record), title=f"Search progression\n{_title(record)}")
    _tidy(axis)
    if record.hypervolume:
        axes[1].plot(range(1, len(record.hypervolume) + 1), record.hypervolume, drawstyle="steps-post", color="tab:blue")
        axes[1].set(xlabel="evaluations", ylabel="hypervolume", xlim=(1, None))
        axes[1].grid(alpha=0.3)
    return figure


def _front(record: SearchRecord) -> Any:
    """All evaluations grey, the front, the networks with a name; where latency was measured, that beside its prediction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axis, scale, several = figure.subplots(), _cost_axis(record), _several(record)
    members = [record.evaluations[number] for number in record.front]
    line: dict[str, Any] = {"color": "black", "linewidth": 1, "drawstyle": "steps-post", "zorder": 2}
    axis.plot([scale(one.cost) for one in members], [one.quality for one in members], **line)
    formats = list(dict.fromkeys(one.weight_format for one in record.evaluations))
    for marker, name in zip(_MARKERS, formats, strict=False):
        label = f", {name}" if several else ""
        for points, color, size, what in ((record.evaluations, "0.75", 14, "evaluated"), (members, "black", 26, "front")):
            own = [one for one in points if one.weight_format == name]
            places = [scale(one.cost) for one in own], [one.quality for one in own]
            drawn: dict[str, Any] = {"marker": marker, "color": color, "s": size, "label": f"{what}{label} ({len(own)})"}
            axis.scatter(*places, **drawn, zorder=1 if what == "evaluated" else 3)
    _draw_named(record, axis, scale)
    _draw_measured(record, axis, scale)
    axis.set(xlabel=scale.label, ylabel=_quality_label(record), title=_title(record))
    _near(axis, record, members)
    _tidy(axis)
    return figure


def _near(axis: Any, record: SearchRecord, members: Sequence[Evaluation]) -> None:
    """Show what lies between the front and the networks with a name: a network that answers nothing would press it flat."""
    shown = [one.quality for one in (*members, *_known(record).values(), *_picks(record).values())]
    low, high = min(shown), max(shown)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    outside = sum(not low <= one.quality <= high for one in record.evaluations)
    if outside and high > low:
        axis.set_ylim(low, high)
        axis.set_xlabel(f"{axis.get_xlabel()}; {outside} networks lie beyond this plot")


def _draw_named(record: SearchRecord, axis: Any, scale: _Axis) -> None:
    looks = [(name, one, *_NAMED[name], 70) for name, one in _known(record).items()]
    picks = enumerate(_picks(record).items())
    looks += [(name, one, "*", _PICKS[place % len(_PICKS)], 200) for place, (name, one) in picks]
    for name, one, marker, color, size in looks:
        drawn = {"marker": marker, "s": size, "color": color, "edgecolors": "black", "zorder": 4}
        axis.scatter([scale(one.cost)], [one.quality], **drawn, label=_told(record, name, one, scale))


def _draw_measured(record: SearchRecord, axis: Any, scale: _Axis) -> None:
    """What was measured, a line to what was predicted."""
    if not COSTS[record.cost].needs_device:
        return
    for place, found in enumerate(record.measured):
        one = record.evaluations[found.evaluation]
        ends = [scale(one.cost), scale(getattr(found, record.cost))]
        axis.plot(ends, [one.quality] * 2, color="tab:red", linewidth=1, alpha=0.6, zorder=2)
        label = "measured in the end" if place == 0 else None
        axis.plot(ends[1], one.quality, "x", color="tab:red", zorder=5, label=label)


def _tidy(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def tables(record: SearchRecord) -> list[Table]:
    """The networks with a name, and the damage of each group, for the terminal.

    Args:
        record: The search.

    Returns:
        Title, headings and rows of each table.
    """
    return [_networks(record), *([_damage(record.table.damage)] if record.table and any(record.table.damage) else [])]


def _networks(record: SearchRecord) -> Table:
    scale, measured = _cost_axis(record), {one.evaluation: one for one in record.measured}
    headings = ["network", f"{record.quality}, {record.units[record.quality]}", f"{COSTS[record.cost].title}, {scale.unit}"]
    headings += ["format", "from"]
    metrics = [name for name in _TIMES if any(getattr(one, name) is not None for one in measured.values())]
    headings += [f"{COSTS[name].title} ms (/ predicted)" for name in metrics]
    rows = []
    for named in (*record.named, *record.picks):
        one = record.evaluations[named.evaluation]
        row = [named.name, f"{one.quality:.4g}", f"{scale(one.cost):.4g}", one.weight_format, one.origin]
        rows.append(row + [_beside(measured.get(one.number), metric) for metric in metrics])
    return "Networks", headings, rows


def ratio(found: Measured, metric: str) -> float | None:
    """What was measured over what was predicted.

    Args:
        found: A measured network.
        metric: ttft, tpot or latency.

    Returns:
        The ratio; None where nothing was predicted.
    """
    predicted: float | None = getattr(found, f"predicted_{metric}")
    value: float = getattr(found, metric)
    return value / predicted if predicted else None


def _beside(found: Measured | None, metric: str) -> str:
    if found is None:
        return ""
    value, beside = getattr(found, metric), ratio(found, metric)
    return f"{value:.2f}" + ("" if beside is None else f" ({beside:.2f} x)")


def _damage(rows: Sequence[Sequence[float]]) -> Table:
    """A line of blocks for each step that groups are narrowed by, a block a searched group, on a logarithmic scale."""
    searched = [row for row in rows if row]
    largest = max(max(row) for row in searched)
    heat = _heat(largest)
    lines = []
    for level in range(1, max(map(len, searched))):
        values = [row[level] for row in searched if level < len(row)]
        lines.append([f"width {level + 1}", "".join(map(heat, values)), f"{min(values):.3g}", f"{max(values):.3g}"])
    return (
        f"Damage of each of {len(searched)} groups alone, in nats",
        ["narrowed to", "groups in order", "least", "most"],
        lines,
    )


def _heat(largest: float) -> Callable[[float], str]:
    def block(value: float) -> str:
        below = math.log10(largest / value) if value > 0 and largest > 0 else _ORDERS_OF_MAGNITUDE
        share = max(0.0, 1 - below / _ORDERS_OF_MAGNITUDE)
        return _HEAT[min(int(share * len(_HEAT)), len(_HEAT) - 1)]

    return block


def latency_shown(table: "LatencyTable") -> Table:
    """A latency table for the terminal: a row for each kind of layers, width and weight format.

    Args:
        table: The table.

    Returns:
        Title, headings and rows.
    """
    told = table.identity
    case = Case(told.prompt_len, told.new_tokens, told.batch_size)
    title = f"Latency on {told.device} ({told.device_name}), {told.threads} threads, {case}, "
    title += f"{table.rounds} rounds in {table.starts} starts, {table.date}"
    digits = {name: 2 if name == "ttft" else 3 for name in _TIMES if COSTS[name].generates == bool(told.new_tokens)}
    rows = [
        [kind, str(width), name, *(f"{getattr(curve, metric)[place]:.{own}f}" for metric, own in digits.items())]
        for name, one in table.formats.items()
        for kind, curve in one.curves.items()
        for place, width in enumerate(curve.widths)
    ]
    return title, ["all layers", "width", "format", *(f"{COSTS[metric].title} ms" for metric in digits)], rows
