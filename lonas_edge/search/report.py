"""Reports of a search: all evaluations as CSV, two plots, and a table for the terminal."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lonas_edge.bench.variants import Case
from lonas_edge.files import replace_text
from lonas_edge.search.cost import COSTS, QUALITIES
from lonas_edge.search.record import Evaluation, SearchRecord
from lonas_edge.tables import Table

CSV, PROGRESSION, FRONT = "search_progression.csv", "search_progression.png", "front.png"
_NAMED = {"maximal": ("s", "tab:blue"), "heuristic": ("D", "tab:orange"), "minimal": ("v", "tab:brown")}
_PICKS = ("tab:red", "tab:purple", "tab:green", "tab:pink", "tab:olive", "tab:cyan")
_PIXELS = {"dpi": 120, "metadata": {"Software": None}}  # the same record gives the same file


def write(record: SearchRecord, folder: Path) -> None:
    """Write search_progression.csv and .png, and front.png into an existing directory."""
    import matplotlib

    matplotlib.use("Agg")
    replace_text(folder / CSV, to_csv(record))
    for name, draw in ((PROGRESSION, draw_progression), (FRONT, draw_front)):
        draw(record).savefig(folder / name, **_PIXELS)


def to_csv(record: SearchRecord) -> str:
    """Write one line per evaluation, in order."""
    headings = ["evaluation", "widths", record.cost, record.quality, "hypervolume", "origin", "seconds"]
    rows = []
    for point, area in zip(record.evaluations, record.hypervolume, strict=True):
        widths = json.dumps(list(point.widths))
        rows.append([point.number, widths, point.cost, point.quality, area, point.origin, point.seconds])
    return Table(headings, rows).to_csv()


def table(record: SearchRecord) -> Table:
    """Make the table of the named networks for the terminal."""
    rows = []
    for named in (*record.named, *record.picks):
        evaluation = record.evaluations[named.evaluation]
        rows.append([named.name, f"{evaluation.quality:.4g}", f"{evaluation.cost:.4g}", evaluation.origin])
    cost = f"{COSTS[record.cost].title}, {COSTS[record.cost].unit}"
    return Table(["network", f"{record.quality}, {record.units[record.quality]}", cost, "origin"], rows, "Networks")


def draw_progression(record: SearchRecord) -> Any:
    """Draw cost and quality of every evaluation, colored by order as in the reference, and the hypervolume."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axis, below = figure.subplots(2, 1, height_ratios=(2.4, 1))
    numbers = range(1, len(record.evaluations) + 1)
    points = _scatter(axis, record.evaluations, c=numbers, cmap="viridis", marker="D", s=16, alpha=0.8)
    figure.colorbar(points, ax=axis, label="evaluation")
    _finish(axis, record)
    below.plot(numbers, record.hypervolume, drawstyle="steps-post", color="tab:blue")
    below.set(xlabel="evaluations", ylabel="hypervolume", xlim=(1, None))
    below.grid(alpha=0.3)
    return figure


def draw_front(record: SearchRecord) -> Any:
    """Draw all evaluations, the Pareto front and the named networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    front = [record.evaluations[number] for number in record.front]
    _scatter(axis, record.evaluations, color="0.75", s=14, label=f"evaluated ({len(record.evaluations)})", zorder=1)
    costs, qualities = [member.cost for member in front], [member.quality for member in front]
    axis.plot(costs, qualities, color="black", linewidth=1, drawstyle="steps-post", zorder=2)
    _scatter(axis, front, color="black", s=26, label=f"Pareto front ({len(front)})", zorder=3)
    _finish(axis, record)
    # a single broken network would flatten the plot
    shown = [*qualities, *(record.evaluations[entry.evaluation].quality for entry in record.named if entry.name in _NAMED)]
    margin = 0.1 * (max(shown) - min(shown)) or 1.0
    axis.set_ylim(min(shown) - margin, max(shown) + margin)
    return figure


def _scatter(axis: Any, evaluations: Sequence[Evaluation], **style: Any) -> Any:
    costs, qualities = [evaluation.cost for evaluation in evaluations], [evaluation.quality for evaluation in evaluations]
    return axis.scatter(costs, qualities, **style)


def _finish(axis: Any, record: SearchRecord) -> None:
    """Draw maximal, heuristic, minimal and the picks; label the axes; name the model, and the device of a latency."""
    from matplotlib.ticker import EngFormatter

    settings, cost, unit = record.settings, COSTS[record.cost], record.units[record.quality]
    engineering = EngFormatter(unit={"MACs": "MACs", "bytes": "B", "ms": "s"}.get(cost.unit, ""), places=2)

    def form(value: float, _position: object = None) -> str:
        return engineering(value / 1000 if cost.unit == "ms" else value)

    looks = {entry: (*_NAMED[entry.name], 70) for entry in record.named if entry.name in _NAMED}
    looks |= {entry: ("*", _PICKS[index % len(_PICKS)], 200) for index, entry in enumerate(record.picks)}
    for entry, (marker, color, size) in looks.items():
        evaluation = record.evaluations[entry.evaluation]
        label = f"{entry.name.removeprefix('pick:')}: {form(evaluation.cost)}, {evaluation.quality:.3g} {unit}"
        _scatter(axis, [evaluation], marker=marker, s=size, color=color, edgecolors="black", zorder=4, label=label)
    title = f"{record.model}: {len(record.evaluations)} networks, {settings['weight_format']}"
    if cost.timed:
        case = Case(settings["prompt_len"], settings["new_tokens"], 1)
        title += f"\n{settings['device']} ({record.conditions.get('processor', 'unknown')}), {case}"
    # encoders with scores or embeddings have other distances, such as the squared distance
    quality = f"{unit} from the unpruned network" if unit.endswith("distance") else f"{QUALITIES[record.quality]} in {unit}"
    axis.set(xlabel=cost.title, ylabel=f"{quality} (lower is better)", title=title)
    axis.xaxis.set_major_formatter(form)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
