"""Reports of a search: all evaluations as CSV, two plots, and a table for the terminal."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.bench.variants import Case
from lonas_edge.files import replace_text
from lonas_edge.search.cost import COSTS, QUALITIES
from lonas_edge.search.record import Evaluation, SearchRecord
from lonas_edge.tables import Table

CSV, PROGRESSION, FRONT = "search_progression.csv", "search_progression.png", "front.png"
_PREFIXES = ("", "k", "M", "G", "T", "P")
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
    scale = _Scale.of(record)
    headings = ["network", f"{record.quality}, {record.units[record.quality]}", f"{COSTS[record.cost].title}, {scale.unit}"]
    rows = []
    for named in (*record.named, *record.picks):
        evaluation = record.evaluations[named.evaluation]
        rows.append([named.name, f"{evaluation.quality:.4g}", f"{evaluation.cost / scale.divisor:.4g}", evaluation.origin])
    return Table([*headings, "origin"], rows, "Networks")


@dataclass(frozen=True)
class _Scale:
    """The scale of a cost: an SI prefix where figures are large."""

    divisor: float
    unit: str

    @classmethod
    def of(cls, record: SearchRecord) -> "_Scale":
        unit = COSTS[record.cost].unit
        if unit == "ms":
            return cls(1.0, unit)
        largest = max(evaluation.cost for evaluation in record.evaluations)
        power = min(int(math.log10(max(largest, 1)) // 3), len(_PREFIXES) - 1)
        return cls(1000.0**power, _PREFIXES[power] + {"MACs": "MACs", "bytes": "B"}.get(unit, ""))


def _label_axes(axis: Any, record: SearchRecord) -> None:
    """Label cost and quality; the title names the model, and the device if the cost depends on one."""
    settings, cost, quality, unit = record.settings, COSTS[record.cost], QUALITIES[record.quality], record.units[record.quality]
    title = f"{record.model}: {len(record.evaluations)} networks, {settings['weight_format']}"
    if cost.timed:
        case = Case(settings["prompt_len"], settings["new_tokens"], 1)
        title += f"\n{settings['device']} ({record.conditions.get('processor', 'unknown')}), {case}"
    # encoders with scores or embeddings have other distances, such as the squared distance
    y = f"{unit} from the unpruned network" if unit.endswith("distance") else f"{quality.title} in {unit}"
    axis.set(xlabel=f"{cost.title} ({_Scale.of(record).unit})", ylabel=f"{y} (lower is better)", title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def draw_progression(record: SearchRecord) -> Any:
    """Draw cost and quality of every evaluation, colored by order as in the reference, and the hypervolume."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    axis, below = figure.subplots(2, 1, height_ratios=(2.4, 1))
    numbers = range(1, len(record.evaluations) + 1)
    points = _scatter(axis, record, record.evaluations, c=numbers, cmap="viridis", marker="D", s=16, alpha=0.8)
    figure.colorbar(points, ax=axis, label="evaluation")
    _draw_named(axis, record)
    _label_axes(axis, record)
    below.plot(numbers, record.hypervolume, drawstyle="steps-post", color="tab:blue")
    below.set(xlabel="evaluations", ylabel="hypervolume", xlim=(1, None))
    below.grid(alpha=0.3)
    return figure


def draw_front(record: SearchRecord) -> Any:
    """Draw all evaluations, the Pareto front and the named networks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axis, divisor = figure.subplots(), _Scale.of(record).divisor
    front = [record.evaluations[number] for number in record.front]
    costs, qualities = [member.cost / divisor for member in front], [member.quality for member in front]
    axis.plot(costs, qualities, color="black", linewidth=1, drawstyle="steps-post", zorder=2)
    evaluated = f"evaluated ({len(record.evaluations)})"
    _scatter(axis, record, record.evaluations, color="0.75", s=14, label=evaluated, zorder=1)
    _scatter(axis, record, front, color="black", s=26, label=f"Pareto front ({len(front)})", zorder=3)
    _draw_named(axis, record)
    # a single broken network would flatten the plot
    shown = [*qualities, *(evaluation.quality for _, evaluation, _, _ in _named(record))]
    margin = 0.1 * (max(shown) - min(shown)) or 1.0
    axis.set_ylim(min(shown) - margin, max(shown) + margin)
    _label_axes(axis, record)
    return figure


def _scatter(axis: Any, record: SearchRecord, evaluations: Sequence[Evaluation], **style: Any) -> Any:
    divisor = _Scale.of(record).divisor
    costs = [evaluation.cost / divisor for evaluation in evaluations]
    return axis.scatter(costs, [evaluation.quality for evaluation in evaluations], **style)


def _named(record: SearchRecord) -> Iterator[tuple[str, Evaluation, str, str]]:
    """List name, evaluation, marker and color of maximal, heuristic and minimal, and of the picks."""
    for entry in record.named:
        if entry.name in _NAMED:
            yield entry.name, record.evaluations[entry.evaluation], *_NAMED[entry.name]
    for position, entry in enumerate(record.picks):
        yield entry.name.removeprefix("pick:"), record.evaluations[entry.evaluation], "*", _PICKS[position % len(_PICKS)]


def _draw_named(axis: Any, record: SearchRecord) -> None:
    scale, unit = _Scale.of(record), record.units[record.quality]
    for name, evaluation, marker, color in _named(record):
        cost = f"{evaluation.cost / scale.divisor:.4g} {scale.unit}".rstrip()
        label = f"{name}: {cost}, {evaluation.quality:.3g} {unit}"
        size = 200 if marker == "*" else 70
        _scatter(axis, record, [evaluation], marker=marker, s=size, color=color, edgecolors="black", zorder=4, label=label)
