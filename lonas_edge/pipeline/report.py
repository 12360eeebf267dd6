"""The report of a compression: Markdown, a plot, and one HTML file that loads nothing from elsewhere."""

import base64
from pathlib import Path
from typing import Any

from lonas_edge.evaluate.answer_metrics import METRICS
from lonas_edge.evaluate.targets import DRAFTED
from lonas_edge.files import replace_text
from lonas_edge.pipeline import charts
from lonas_edge.pipeline.options import OWN
from lonas_edge.pipeline.record import CompressRecord, Network
from lonas_edge.pipeline.tasks import PROFILES, interval
from lonas_edge.search.cost import COSTS
from lonas_edge.tables import Table, duration, in_markdown, megabytes

MARKDOWN, PLOT, HTML = "report.md", "report.png", "report.html"


def write_report(record: CompressRecord, folder: Path) -> None:
    """Write report.md, report.png and report.html into an existing directory."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    plot = charts.networks(record, PROFILES[record.task], width=8.0)
    plot.suptitle(f"{record.source}, {record.machine.get('processor', '')}")
    (folder / PLOT).write_bytes(charts.image(plot, "png"))
    replace_text(folder / MARKDOWN, to_markdown(record))
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, **options)
    html = environment.get_template("report.html.jinja").render(
        record=record,
        summary=summary(record),
        table=record.table(),
        explanation=explain(record),
        sections=_sections(record),
        step_table=step_table(record),
    )
    replace_text(folder / HTML, html)


def to_markdown(record: CompressRecord) -> str:
    """Return the report as Markdown."""
    first, *results = summary(record)
    commands = [command for step in record.steps for command in step.command.splitlines()]
    lines = [f"# Compression of {in_markdown(record.source)}", "", in_markdown(first), ""]
    lines += [f"- {in_markdown(sentence)}" for sentence in results]
    lines += ["", "## Networks", "", *record.table().to_markdown(), "", in_markdown(explain(record)), ""]
    lines += [f"![Latency and quality of the networks with 95 % intervals]({PLOT})", ""]
    lines += [f"[{HTML}]({HTML}) also has the searched sub-networks, training curves and all options.", ""]
    lines += ["## Steps", "", *step_table(record).to_markdown(), "", *(f"    {line}" for line in commands), ""]
    conditions = {"processor": record.machine.get("processor", ""), **record.versions}
    lines += ["## Conditions", "", in_markdown("; ".join(f"{name} {value}" for name, value in conditions.items()))]
    return "\n".join([*lines, ""])


def comparison(record: CompressRecord) -> str:
    """Return the table of the networks for a model card, as Markdown."""
    return "\n".join([*record.table().to_markdown(), "", in_markdown(explain(record)), ""])


def step_table(record: CompressRecord) -> Table:
    """Return the estimated and the actual time of each step."""
    rows = [[step.name, duration(step.estimated_seconds), duration(step.seconds)] for step in record.steps]
    rows.append(["total", "", duration(sum(step.seconds for step in record.steps))])
    return Table(["step", "estimated", "actual"], rows)


def explain(record: CompressRecord) -> str:
    """Explain the table."""
    profile = PROFILES[record.task]
    columns = [*record.qualities, *record.latencies]
    sentences = [f"{column.title[:1].upper()}{column.title[1:]}: {column.meaning}." for column in columns]
    sentences.append(f"Quality: {record.examples['held_out']:,} held-out examples.")
    sentences.append(f"Times: medians, {profile.lengths.format(record.prompt_len, record.new_tokens)}.")
    if any(network.name.endswith(DRAFTED) for network in record.networks):
        sentences.append("With a draft, all times are of these answers, and so are those that the ratios compare.")
    sentences.append(f"Δ and ratios: compared with {record.networks[0].name}, paired. In brackets: 95 % intervals.")
    if record.tokens_per_text != 1:
        sentences.append(f"Ratios are for equal texts: the smaller vocabulary takes {record.tokens_per_text:.3f}x the tokens.")
    return " ".join([*sentences, *record.warnings])


def summary(record: CompressRecord) -> list[str]:
    """State what was compressed, and the results of each compressed network."""
    base = f" (base model {record.base})" if record.base != record.source else ""
    examples, took = f"{record.examples['train']:,} examples of {record.data}", sum(step.seconds for step in record.steps)
    first = f"{record.source}{base} was compressed with {examples} in {duration(took)}."
    return [first, *(_result(record, network) for network in record.networks if network.folder), *_drafted(record)]


def _drafted(record: CompressRecord) -> list[str]:
    """State what a draft gains, and which file is for which need."""
    rows = [network for network in record.networks if network.name.endswith(DRAFTED)]
    if not rows:
        return []
    gains = [f"{network.name} {interval(network.latency['tpot'].ratio, 2, unit='x')}" for network in rows]
    return [
        f"TPOT with the draft, compared with {record.networks[0].name}: {', '.join(gains)}. Take {rows[0].name} for the "
        f"least loss of accuracy, {rows[-1].name} for the least time."
    ]


def _result(record: CompressRecord, network: Network) -> str:
    """State what was removed, what the search predicted for the target, what else was tried, and what was measured."""
    profile, baseline = PROFILES[record.task], record.networks[0]
    found = next((each for each in record.candidates if network.target in ", ".join(each.picks).split(", ")), None)
    predicted = ""
    if found:
        predicted = (
            f" For {network.target}, the search predicted {found.cost:.2f}x the {COSTS[record.cost].title} of the "
            f"unpruned network in the same format, at a {profile.distance} of {found.kl:.3f} before the recovery."
        )
    timed = profile.latencies[-1]
    changes = [f"{timed.title} {interval(network.latency[timed.name].ratio, 2, unit='x')}"]
    for column in record.qualities:
        changes.append(f"{column.title} {interval(network.quality[column.name].difference, column.digits, sign='+')}")
    size = f"{megabytes(network.file_bytes)} MB ({network.file_bytes / baseline.file_bytes:.2f}x)"
    measured = f"Compared with {baseline.name}: {', '.join(changes)}, {size}."
    tried = ""
    if trials := record.trials.get(network.target or ""):
        differences = [f"{each.network} {interval(each.difference, 1, sign='+')}" for each in trials]
        tried = f" Tried for {network.target}: {'; '.join(differences)}."
    return f"{network.name}: {_removed(record, network)}.{predicted}{tried} {measured}{_advice(record, network)}"


def _advice(record: CompressRecord, network: Network) -> str:
    """Say what to do where the answers are surely worse and no target bounds that."""
    difference = network.quality[record.metric].difference if record.metric else None
    bounded = record.metric if record.metric in METRICS else OWN
    if difference is None or difference.high >= 0 or str(network.target).startswith(f"{bounded}>="):
        return ""
    return (
        f" The answers are worse: --target {bounded}=-1 bounds the loss. The unpruned INT8 model loses nothing, and a draft "
        "model makes it faster where answers are predictable."
    )


def _removed(record: CompressRecord, network: Network) -> str:
    """State what was removed, such as `9 of 30 attention blocks removed`."""
    stated = []
    whole = [layer for layer in network.removed if all(part.kept == 0 for part in layer)]
    parts = [part for layer in network.removed for part in layer]
    if whole and sum(map(len, whole)) == sum(part.kept == 0 for part in parts):
        stated.append(f"{len(whole)} of {len(network.removed)} layers removed")
    else:
        for kind in dict.fromkeys(part.kind for part in parts):
            kept = [part.kept for part in parts if part.kind == kind]
            name = kind.replace("mlp", "MLP")
            stated += [f"{kept.count(0)} of {len(kept)} {name} blocks removed"] if 0 in kept else []
    stated += ["widths reduced"] if any(0 < part.kept < part.full for part in parts) else []
    stated += ["vocabulary trimmed"] if record.tokens_per_text != 1 and not network.name.startswith("unpruned") else []
    return ", ".join(stated) or "nothing was removed"


def _sections(record: CompressRecord) -> dict[str, list[tuple[str, str]]]:
    """Titles and charts by the heading of their section."""
    profile = PROFILES[record.task]
    drawn = {
        "Trade-off": {
            "Searched sub-networks, before the recovery": charts.candidates(record, profile),
            "Measured networks, with 95 % intervals": charts.networks(record, profile),
        },
        "Removed parts": {
            network.name: charts.kept_parts(network, index) for index, network in enumerate(record.networks) if network.removed
        },
        "Training": {curve.name: charts.losses(curve, profile) for curve in record.curves},
    }
    sections: dict[str, list[tuple[str, str]]] = {}
    for heading, figures in drawn.items():
        images = {title: base64.b64encode(charts.image(figure, "svg")).decode() for title, figure in figures.items()}
        sections[heading] = [(title, f"data:image/svg+xml;base64,{image}") for title, image in images.items()]
    return sections
