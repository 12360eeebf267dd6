"""Reports of a search: all evaluations as CSV, two plots, and tables for the terminal."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lonas_edge.bench.variants import Case
from lonas_edge.files import replace_text
from lonas_edge.search.cost import COSTS, END_TO_END, end_to_end
from lonas_edge.search.quality import QUALITIES
from lonas_edge.search.record import Evaluation, Measured, SearchRecord
from lonas_edge.tables import Table

CSV, PROGRESSION, FRONT = "search_progression.csv", "search_progression.png", "front.png"

_TIMES = tuple(name for name, cost in COSTS.items() if cost.timed and name != END_TO_END)
_PREFIXES = ("", "k", "M", "G", "T", "P")
_HEAT = "▁▂▃▄▅▆▇█"
_ORDERS_OF_MAGNITUDE = 3  # that the heat lines distinguish
_NAMED = {"maximal": ("s", "tab:blue"), "heuristic": ("D", "tab:orange"), "minimal": ("v", "tab:brown")}
_PICKS = ("tab:red", "tab:purple", "tab:green", "tab:pink", "tab:olive", "tab:cyan")
_PIXELS = {"dpi": 120, "metadata": {"Software": None}}  # the same record gives the same file


def write(record: SearchRecord, folder: Path) -> None:
    """Write search_progression.csv and .png, and front.png into an existing directory."""
    import matplotlib

    matplotlib.use("Agg")
    replace_text(folder / CSV, to_csv(record))
    for name, draw in ((PROGRESSION, _progression), (FRONT, _front)):
        draw(record).savefig(folder / name, **_PIXELS)


def to_csv(record: SearchRecord) -> str:
    """Write one line per evaluation, in order."""
    headings = ["evaluation", "widths", record.cost, record.quality, "hypervolume", "origin", "seconds"]
    rows = []
    for point, area in zip(record.evaluations, record.hypervolume, strict=True):
        widths = json.dumps(list(point.widths))
        rows.append([point.number, widths, point.cost, point.quality, area, point.origin, point.seconds])
    return Table(headings, rows).to_csv()


class _Axis:
    """A cost with an SI prefix where numbers are large."""

    def __init__(self, record: SearchRecord):
        cost, largest = COSTS[record.cost], max(evaluation.cost for evaluation in record.evaluations)
        power = 0 if cost.unit == "ms" else min(int(math.log10(max(largest, 1)) // 3), len(_PREFIXES) - 1)
        self.divisor = 1000.0**power
        unit = {"MACs": "MACs", "bytes": "B", "ms": "ms"}.get(cost.unit, "")
        self.unit = f"{_PREFIXES[power]}{unit}"
        self.label = f"{cost.title} in {self.unit}" if unit in ("B", "ms") else f"{cost.title} ({self.unit})"

    def __call__(self, value: float) -> float:
        return value / self.divisor

    def shown(self, value: float) -> str:
        """Return a cost with its unit."""
        return f"{self(value):.4g} {self.unit}".rstrip()


def _quality_label(record: SearchRecord) -> str:
    quality, unit = QUALITIES[record.quality], record.units[record.quality]
    # encoders with scores or embeddings have other distances, such as the squared distance
    title = f"{unit} from the unpruned network" if unit.endswith("distance") else f"{quality.title} in {unit}"
    return f"{title} (lower is better)"


def _title(record: SearchRecord) -> str:
    """Return the model, and the device if the cost depends on one."""
    settings = record.settings
    title = f"{record.model}: {len(record.evaluations)} networks, {settings['weight_format']}"
    if not COSTS[record.cost].timed:
        return title
    case = Case(settings["prompt_len"], settings["new_tokens"], settings["batch_size"])
    return f"{title}\n{settings['device']} ({record.conditions.get('processor', 'unknown')}), {case}"


def _known(record: SearchRecord) -> dict[str, Evaluation]:
    """Maximal, heuristic and minimal."""
    return {entry.name: record.evaluations[entry.evaluation] for entry in record.named if entry.name in _NAMED}


def _picks(record: SearchRecord) -> dict[str, Evaluation]:
    return {entry.name: record.evaluations[entry.evaluation] for entry in record.picks}


def _progression(record: SearchRecord) -> Any:
    """Draw cost and quality of every evaluation, colored by order as in the reference, and the hypervolume."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axis, below = figure.subplots(2, 1, height_ratios=(2.4, 1))
    scale, count = _Axis(record), len(record.evaluations)
    costs, qualities = [scale(point.cost) for point in record.evaluations], [point.quality for point in record.evaluations]
    points = axis.scatter(costs, qualities, c=range(1, count + 1), cmap="viridis", marker="D", s=16, alpha=0.8)
    figure.colorbar(points, ax=axis, label="evaluation")
    _draw_named(record, axis, scale)
    axis.set(xlabel=scale.label, ylabel=_quality_label(record), title=f"Search progression\n{_title(record)}")
    _finish(axis)
    below.plot(range(1, count + 1), record.hypervolume, drawstyle="steps-post", color="tab:blue")
    below.set(xlabel="evaluations", ylabel="hypervolume", xlim=(1, None))
    below.grid(alpha=0.3)
    return figure


def _front(record: SearchRecord) -> Any:
    """Draw all evaluations, the Pareto front and the named networks; measured latencies next to predicted ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axis, scale = figure.subplots(), _Axis(record)
    members = [record.evaluations[number] for number in record.front]
    line: dict[str, Any] = {"color": "black", "linewidth": 1, "drawstyle": "steps-post", "zorder": 2}
    axis.plot([scale(evaluation.cost) for evaluation in members], [evaluation.quality for evaluation in members], **line)
    for points, color, size, name, order in (
        (record.evaluations, "0.75", 14, "evaluated", 1),
        (members, "black", 26, "Pareto front", 3),
    ):
        style: dict[str, Any] = {"color": color, "s": size, "label": f"{name} ({len(points)})", "zorder": order}
        axis.scatter([scale(evaluation.cost) for evaluation in points], [evaluation.quality for evaluation in points], **style)
    _draw_named(record, axis, scale)
    _draw_measured(record, axis, scale)
    axis.set(xlabel=scale.label, ylabel=_quality_label(record), title=_title(record))
    _limit(axis, record, members)
    _finish(axis)
    return figure


def _limit(axis: Any, record: SearchRecord, members: Sequence[Evaluation]) -> None:
    """Limit the axis to the front and the named networks, because a single broken network would flatten the plot."""
    shown = [evaluation.quality for evaluation in (*members, *_known(record).values(), *_picks(record).values())]
    margin = 0.1 * (max(shown) - min(shown))
    low, high = min(shown) - margin, max(shown) + margin
    outside = sum(not low <= evaluation.quality <= high for evaluation in record.evaluations)
    if outside and high > low:
        axis.set_ylim(low, high)
        axis.set_xlabel(f"{axis.get_xlabel()}; {outside} networks are outside of this plot")


def _draw_named(record: SearchRecord, axis: Any, scale: _Axis) -> None:
    looks = [(name, evaluation, *_NAMED[name], 70) for name, evaluation in _known(record).items()]
    picks = enumerate(_picks(record).items())
    looks += [(name, evaluation, "*", _PICKS[position % len(_PICKS)], 200) for position, (name, evaluation) in picks]
    for name, evaluation, marker, color, size in looks:
        quality = f"{evaluation.quality:.3g} {record.units[record.quality]}"
        label = f"{name.removeprefix('pick:')}: {scale.shown(evaluation.cost)}, {quality}"
        style = {"marker": marker, "s": size, "color": color, "edgecolors": "black", "zorder": 4, "label": label}
        axis.scatter([scale(evaluation.cost)], [evaluation.quality], **style)


def _draw_measured(record: SearchRecord, axis: Any, scale: _Axis) -> None:
    """Draw measured latencies, each with a line to its prediction."""
    if not COSTS[record.cost].timed:
        return
    for position, network in enumerate(record.measured):
        evaluation = record.evaluations[network.evaluation]
        ends = [scale(evaluation.cost), scale(_measured_cost(network, record))]
        axis.plot(ends, [evaluation.quality] * 2, color="tab:red", linewidth=1, alpha=0.6, zorder=2)
        axis.plot(ends[1], evaluation.quality, "x", color="tab:red", zorder=5, label="measured" if position == 0 else None)


def _measured_cost(network: Measured, record: SearchRecord) -> float:
    if record.cost == END_TO_END:
        assert network.ttft is not None and network.tpot is not None
        return end_to_end(network.ttft, network.tpot, record.settings["new_tokens"])
    return float(getattr(network, record.cost))


def _finish(axis: Any) -> None:
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def tables(record: SearchRecord) -> list[Table]:
    """Make the tables of the networks and of the sensitivity for the terminal."""
    return [_networks(record), _sensitivity(record.sensitivity)]


def _networks(record: SearchRecord) -> Table:
    scale, measured = _Axis(record), {network.evaluation: network for network in record.measured}
    metrics = [name for name in _TIMES if any(getattr(network, name) is not None for network in measured.values())]
    headings = ["network", f"{record.quality}, {record.units[record.quality]}", f"{COSTS[record.cost].title}, {scale.unit}"]
    headings += ["origin", *(f"measured {COSTS[name].title}, ms (/ predicted)" for name in metrics)]
    rows = []
    for named in (*record.named, *record.picks):
        evaluation = record.evaluations[named.evaluation]
        row = [named.name, f"{evaluation.quality:.4g}", f"{scale(evaluation.cost):.4g}", evaluation.origin]
        rows.append(row + [_compared(measured.get(evaluation.number), metric) for metric in metrics])
    return Table(headings, rows, "Networks")


def _compared(network: Measured | None, metric: str) -> str:
    if network is None:
        return ""
    value, predicted = getattr(network, metric), getattr(network, f"predicted_{metric}")
    return f"{value:.2f} ({value / predicted:.2f} x)" if predicted else f"{value:.2f}"


def _sensitivity(rows: Sequence[Sequence[float]]) -> Table:
    """Draw a line for each narrower width with a block per searched group, on a logarithmic scale."""
    searched = [row for row in rows if row]
    heat = _heat(max(max(row) for row in searched))
    lines = []
    for level in range(1, max(map(len, searched))):
        values = [row[level] for row in searched if level < len(row)]
        lines.append([f"width {level + 1}", "".join(map(heat, values)), f"{min(values):.3g}", f"{max(values):.3g}"])
    title = f"Sensitivity: distance from the unpruned network that each of {len(searched)} groups adds alone"
    return Table(["narrowed to", "groups in order", "least", "most"], lines, title)


def _heat(largest: float) -> Callable[[float], str]:
    def block(value: float) -> str:
        below = math.log10(largest / value) if value > 0 and largest > 0 else _ORDERS_OF_MAGNITUDE
        share = max(0.0, 1 - below / _ORDERS_OF_MAGNITUDE)
        return _HEAT[min(int(share * len(_HEAT)), len(_HEAT) - 1)]

    return block
