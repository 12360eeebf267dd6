"""The report of a compression as one HTML file: no scripts, nothing loaded from elsewhere, all texts escaped."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.pipeline import charts
from lonas_edge.pipeline.record import CompressRecord, Sample
from lonas_edge.pipeline.svg import PLACEHOLDERS, inline_svg
from lonas_edge.pipeline.tables import MISSING, conditions, cost_title, explain, network_table, step_table, summary, task_of
from lonas_edge.pipeline.text import shortened

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "report.html.jinja"

_SAMPLES_BYTES = 350_000  # of all sample answers, so that the file stays below 1 MB
_MOST_SAMPLES, _OPEN_SAMPLES = 30, 2
_TEXT_LIMITS = (8000, 4000, 2000, 1000, 500, 200)  # characters of a text: the first that fits
_OPTION_LIMIT = 2000  # characters of the value of an option
_HEADING = 160


@dataclass(frozen=True)
class Figure:
    """A chart with its title and caption; without a chart the caption says why."""

    title: str
    caption: str
    svg: "Markup | None"


def to_html(record: CompressRecord) -> str:
    """Return the report as HTML; the texts of the record are `printable`."""
    import matplotlib
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with matplotlib.rc_context(charts.settings(PLACEHOLDERS)):
        return environment.get_template(TEMPLATE).render(_context(record))


def _context(record: CompressRecord) -> dict[str, Any]:
    first, *sentences = summary(record)
    headings, rows = network_table(record)
    step_headings, step_rows = step_table(record)
    commands = [step.command for step in record.steps]
    shown, samples = _samples(record)
    return {
        "source": record.source,
        "summary": first,
        "results": sentences,
        "headings": headings,
        "rows": rows,
        "explanation": explain(record),
        "sections": [
            ("trade-off", "Trade-off", list(_trade_off(record))),
            ("removed", "Removed parts", list(_removed(record))),
            ("training", "Training", list(_training(record))),
            ("latency", "Latency", list(_latency(record))),
        ],
        "has_samples": task_of(record).samples,
        "samples": samples,
        "open_samples": _OPEN_SAMPLES,
        "samples_note": shown,
        "step_headings": step_headings,
        "steps": list(zip(step_rows, [*commands, None], strict=False)),
        "conditions": {
            title: {name: shortened(value, _OPTION_LIMIT) for name, value in part.items()}
            for title, part in conditions(record).items()
        },
    }


def _figure(name: str, title: str, caption: str, drawing: charts.Drawing | None, otherwise: str) -> Figure:
    from markupsafe import Markup

    if drawing is None:
        return Figure(title, otherwise, None)
    content = Markup(inline_svg(drawing.figure, name, title))  # matplotlib escapes the names in it
    return Figure(title, " ".join([caption, *drawing.notes]), content)


def _trade_off(record: CompressRecord) -> Iterator[Figure]:
    cost = f"{cost_title(record.cost)} as a fraction of the unpruned network's"
    caption, title = f"Each point is a sub-network before recovery. Cost: {cost}.", "Searched sub-networks"
    yield _figure("search", title, caption, charts.search(record, PLACEHOLDERS), "No sub-networks were searched.")
    caption = "Bars: 95 % intervals. Lower left is better."
    yield _figure("measured", "Measured networks", caption, charts.measured(record, PLACEHOLDERS), "")


def _removed(record: CompressRecord) -> Iterator[Figure]:
    """Yield a figure for each distinct sub-network."""
    pictures: dict[Any, list[int]] = {}
    for index, network in enumerate(record.networks):
        if network.removed:
            pictures.setdefault(network.removed, []).append(index)
    for number, (picture, indices) in enumerate(pictures.items()):
        title = ", ".join(record.networks[index].name for index in indices)
        if all(part.kept == part.full for layer in picture for part in layer):
            yield Figure(title, "Nothing is removed.", None)
            continue
        drawing = charts.kept(picture, PLACEHOLDERS, charts.look(PLACEHOLDERS, indices[0]).color)
        caption = "Colour: kept. Grey: removed. ×: the entire block is removed."
        yield _figure(f"kept-{number}", title, caption, drawing, "Nothing is removed.")
    if not pictures:
        yield Figure("", "No measured network is pruned.", None)


def _training(record: CompressRecord) -> Iterator[Figure]:
    for number, curve in enumerate(record.curves):
        drawing = charts.training(curve, PLACEHOLDERS, task_of(record).loss)
        yield _figure(f"training-{number}", curve.name, "", drawing, "No finite losses were recorded.")
    if not record.curves:
        yield Figure("", "Nothing was trained.", None)


def _latency(record: CompressRecord) -> Iterator[Figure]:
    caption = "Points: samples. Line: median with its 95 % interval."
    for timed in task_of(record).latencies:
        drawing = charts.latency(record, timed, PLACEHOLDERS)
        yield _figure(timed.name, timed.full, caption, drawing, "No latencies were measured.")


def _samples(record: CompressRecord) -> tuple[str, list[tuple[str, str, dict[str, str]]]]:
    """Return a note; and title, prompt and answers of each sample, cut so that all of them fit."""
    samples = record.samples[:_MOST_SAMPLES]
    texts = [(sample.prompt, _answers(record, sample)) for sample in samples]
    for limit in _TEXT_LIMITS:
        cut = [
            (shortened(prompt, limit), {name: shortened(text, limit) for name, text in own.items()}) for prompt, own in texts
        ]
        if sum(len(escape(text).encode()) for prompt, own in cut for text in (prompt, *own.values())) <= _SAMPLES_BYTES:
            break
    parts = [f"{len(samples)} of {len(record.samples)} prompts are shown."] if len(samples) < len(record.samples) else []
    parts += [f"Texts are cut after {limit:,} characters."] if cut != texts else []
    return " ".join(parts), [(_one_line(prompt), prompt, own) for prompt, own in cut]


def _answers(record: CompressRecord, sample: Sample) -> dict[str, str]:
    """Return the reference and the answers of the networks, in the order of the table."""
    names = [network.name for network in record.networks if network.name in sample.answers]
    return {"Reference answer": sample.reference, **{name: sample.answers[name] for name in (*names, *sample.answers)}}


def _one_line(text: str) -> str:
    line = " ".join(text.split()) or MISSING
    return line if len(line) <= _HEADING else f"{line[:_HEADING]} …"
