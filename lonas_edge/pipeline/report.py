"""The report of a compression: Markdown, a plot, and one HTML file."""

import re
from pathlib import Path

from lonas_edge.files import replace_text
from lonas_edge.markdown import in_markdown, markdown_table
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.tables import (
    conditions,
    explain,
    network_table,
    step_table,
    summary,
    task_of,
)
from lonas_edge.pipeline.text import printable
from lonas_edge.space.picture import lines

MARKDOWN, PLOT, HTML = "report.md", "report.png", "report.html"


def write_report(record: CompressRecord, folder: Path) -> None:
    """Write report.md, report.png and report.html into an existing directory."""
    from lonas_edge.pipeline.charts import write_png
    from lonas_edge.pipeline.html import to_html

    record = printable(record)
    write_png(record, folder / PLOT)
    replace_text(folder / HTML, to_html(record))
    replace_text(folder / MARKDOWN, to_markdown(record))


def to_markdown(record: CompressRecord) -> str:
    """Return the report as Markdown."""
    task, (first, *results) = task_of(record), summary(record)
    content = [
        f"# Compression of {in_markdown(record.source)}",
        "",
        in_markdown(first),
        "",
        *(f"- {in_markdown(sentence)}" for sentence in results),
        "",
        "## Networks",
        "",
        *markdown_table(network_table(record)),
        "",
        in_markdown(explain(record)),
        "",
        f"![{task.latencies[-1].title} and {task.qualities[0].title} of the networks with 95 % intervals]({PLOT})",
        "",
        f"[{HTML}]({HTML}) also has the searched sub-networks, training curves and all latency samples.",
        "",
        *_pictures(record),
        "## Steps",
        "",
        *markdown_table(step_table(record)),
        "",
        *_fenced("sh", "\n".join(step.command for step in record.steps)),
        "## Conditions",
        "",
    ]
    for title, part in conditions(record).items():
        values = "; ".join(f"{in_markdown(name)} {in_markdown(value)}" for name, value in part.items())
        content.append(f"- {title}: {values}")
    return "\n".join([*content, ""])


def comparison(record: CompressRecord) -> str:
    """Return the table of the networks for a model card, as Markdown."""
    record = printable(record)
    return "\n".join([*markdown_table(network_table(record)), "", in_markdown(explain(record)), ""])


def _pictures(record: CompressRecord) -> list[str]:
    """Draw the kept parts of each distinct sub-network as text."""
    names: dict[tuple[str, ...], list[str]] = {}
    for network in record.networks:
        if drawn := tuple(lines(network.removed)):
            names.setdefault(drawn, []).append(network.name)
    content = ["## Kept parts of each layer", ""] if names else []
    for drawn, own in names.items():
        content += [f"{in_markdown(', '.join(own))}:", "", *_fenced("text", "\n".join(line.rstrip() for line in drawn))]
    return content


def _fenced(language: str, text: str) -> list[str]:
    """Return a code block, whose fence is longer than any in the text."""
    if not text:
        return []
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence, ""]
