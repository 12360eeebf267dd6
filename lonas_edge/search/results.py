"""The results of a search: its record, the files of its sub-networks, all evaluations as CSV, two plots, and a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lonas_edge.bench.machine import describe
from lonas_edge.bench.variants import Case
from lonas_edge.files import replace_text
from lonas_edge.search import SEARCH, SUBNETWORKS
from lonas_edge.search.cost import COSTS, QUALITIES
from lonas_edge.search.dimensions import Sensitivity
from lonas_edge.search.plan import SearchPlan
from lonas_edge.search.record import Evaluation, Named, SearchRecord, front
from lonas_edge.search.study import SAMPLER
from lonas_edge.space.selection import SubnetworkRecord
from lonas_edge.space.subnetwork import SearchOrigin, Subnetwork
from lonas_edge.tables import Table
from lonas_edge.versions import versions

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optuna", "openvino", "nncf")
CSV, PROGRESSION, FRONT = "search_progression.csv", "search_progression.png", "front.png"
_NAMED = {"maximal": ("s", "tab:blue"), "heuristic": ("D", "tab:orange"), "minimal": ("v", "tab:brown")}
_PICKS = ("tab:red", "tab:purple", "tab:green", "tab:pink", "tab:olive", "tab:cyan")
_PIXELS = {"dpi": 120, "metadata": {"Software": None}}  # the same record gives the same file


def make_record(
    plan: SearchPlan,
    study: str,
    evaluations: Sequence[Evaluation],
    sensitivity: Sensitivity,
    dtype: str,
    machine: Mapping[str, Any],
) -> SearchRecord:
    """Make the record of the evaluations, without picks and duration.

    Args:
        plan: The search.
        study: Name of the study.
        evaluations: All evaluations, in the order of the trials.
        sensitivity: The sensitivity table.
        dtype: Dtype in which PyTorch scored the networks.
        machine: The machine of predicted latencies, fields of `bench.machine.describe`; empty without a latency.
    """
    options, training = plan.options, plan.source.training
    data, unit = plan.identity["data"], plan.data.units.get(options.quality, "nats")
    unseen = all(file.sha256 != data for file in training.data) if training else None
    known = {evaluation.widths: evaluation for evaluation in evaluations}
    presets = {name: known[widths] for name, widths in plan.dimensions.named().items()}
    members = front(evaluations)
    named = [Named(name, evaluation.number) for name, evaluation in presets.items()]
    for rank, member in enumerate(members, 1):
        named.append(Named(f"front:{rank}", member.number, f"front-{rank:02}"))
    return SearchRecord(
        study=study,
        model=plan.source.base.name,
        identity=plan.identity,
        data=options.data.name,
        unseen=unseen,
        quality=options.quality,
        cost=plan.cost,
        units={options.quality: unit, plan.cost: COSTS[plan.cost].unit},
        settings={
            "evals": options.evals,
            "sampler": SAMPLER,
            **plan.source.space.search.model_dump(include={"population", "crossover_prob", "mutation_prob"}),
            "seed": options.seed,
            "dtype": dtype,
            **asdict(options.cost_settings),
        },
        sensitivity=tuple(tuple(row) for row in sensitivity),
        evaluations=tuple(evaluations),
        front=tuple(member.number for member in members),
        named=tuple(named),
        picks=(),
        conditions={**describe("CPU"), **machine, "versions": versions(_PACKAGES)},
        seconds=0.0,
    )


def write_results(plan: SearchPlan, record: SearchRecord, folder: Path) -> None:
    """Write record, sub-networks and plots into an empty directory."""
    (folder / SUBNETWORKS).mkdir()
    for entry in (*record.named, *record.picks):
        if entry.file is None:
            continue
        evaluation = record.evaluations[entry.evaluation]
        origin = SearchOrigin(
            quality=record.quality,
            quality_value=evaluation.quality,
            cost=record.cost,
            cost_value=evaluation.cost,
            units=record.units,
            weight_format=plan.options.cost_settings.weight_format,
            proposed_by=evaluation.origin,
            evaluation=evaluation.number,
            evaluations=len(record.evaluations),
            prompts=record.identity["prompts"],
            super_adapter=record.identity["super_adapter"],
        )
        subnetwork = Subnetwork(plan.source.elasticity, evaluation.widths, f"search:{entry.name}", origin)
        SubnetworkRecord.of(subnetwork).write(folder / SUBNETWORKS / f"{entry.file}.json")
    write_plots(record, folder)
    record.write(folder / SEARCH)


def write_plots(record: SearchRecord, folder: Path) -> None:
    """Write search_progression.csv and .png, and front.png into an existing directory."""
    replace_text(folder / CSV, to_csv(record))
    for name, draw in ((PROGRESSION, draw_progression), (FRONT, draw_front)):
        draw(record).savefig(folder / name, **_PIXELS)


def to_csv(record: SearchRecord) -> str:
    """Write one line per evaluation, in order."""
    headings = ["evaluation", "widths", record.cost, record.quality, "origin", "seconds"]
    rows = []
    for point in record.evaluations:
        rows.append([point.number, json.dumps(list(point.widths)), point.cost, point.quality, point.origin, point.seconds])
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
    """Draw cost and quality of every evaluation, colored by order as in the reference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    numbers = range(1, len(record.evaluations) + 1)
    points = _scatter(axis, record.evaluations, c=numbers, cmap="viridis", marker="D", s=16, alpha=0.8)
    figure.colorbar(points, ax=axis, label="evaluation")
    _finish(axis, record)
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
        case = Case(settings["prompt_len"], settings["new_tokens"])
        title += f"\n{settings['device']} ({record.conditions.get('processor', 'unknown')}), {case}"
    # encoders with scores or embeddings have other distances, such as the squared distance
    quality = f"{unit} from the unpruned network" if unit.endswith("distance") else f"{QUALITIES[record.quality]} in {unit}"
    axis.set(xlabel=cost.title, ylabel=f"{quality} (lower is better)", title=title)
    axis.xaxis.set_major_formatter(form)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
