"""The report of `compress`: its table and sentences by hand, escaped text, and its charts."""

import base64
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from compress_records import HOSTILE, TARGET, compressed, network, realistic, record
from markdown_it import MarkdownIt

from lonas_edge.bench.statistics import Interval
from lonas_edge.pipeline.record import CompressRecord, Quality, Sample
from lonas_edge.pipeline.report import summary, write_report
from lonas_edge.space.picture import Part
from lonas_edge.tables import Table


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def cells(table: Table) -> tuple[list[str], list[list[object]]]:
    """Headings and rows."""
    return list(table.headings), [list(row) for row in table.rows]


def write(made: CompressRecord, folder: Path) -> str:
    """Write a report, and return its HTML."""
    write_report(made, folder)
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.png", "report.html"}
    return (folder / "report.html").read_text(encoding="utf-8")


def hostile() -> CompressRecord:
    """Markup and formulas wherever a text can be."""
    changes = {"source": HOSTILE, "data": HOSTILE, "options": {"template": HOSTILE}, "machine": {"processor": HOSTILE}}
    sample = Sample(HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    return record(network("unpruned"), compressed(HOSTILE, 13.0, 0.01), samples=(sample,), **changes)


def test_the_table() -> None:
    headings, rows = cells(realistic().table())
    assert headings == [
        *("network", "held-out loss", "held-out loss Δ [95 %]", "token accuracy", "token accuracy Δ, points [95 %]"),
        *("TTFT, ms", "TTFT ratio [95 %]", "TPOT, ms", "TPOT ratio [95 %]", "size, MB"),
    ]
    assert rows[0] == ["unpruned INT8 (optimum-cli)", "1.250", "–", "70.00", "–", "200.0", "–", "20.00", "–", "136"]
    assert rows[2] == [
        *("compressed INT4", "1.268", "+0.018 [+0.014, +0.023]", "69.50", "-0.50 [-0.75, -0.25]"),
        *("130.0", "0.65x [0.63, 0.67]", "13.00", "0.65x [0.64, 0.66]", "61.5"),
    ]
    nothing = compressed("a", 13.0, 0.0, quality={"loss": Quality(1.25, Interval(-0.0001, -0.0004, 0.0))})
    assert record(nothing, nothing).table().rows[0][2] == "+0.000 [+0.000, +0.000]"


def test_the_summary() -> None:
    """What was removed, what the search predicted for the target, and what was measured."""
    assert summary(realistic()) == [
        "smollm2-lora (base model SmolLM2-135M) was compressed with 4,000 examples of train.jsonl in 1 h 57 min.",
        "compressed INT4: 10 of 30 attention blocks removed. For tpot<=0.7x, the search predicted 0.69x the TPOT of the "
        "unpruned network in the same format, at a KL divergence of 0.123 before the recovery. Compared with unpruned INT8 "
        "(optimum-cli): TPOT 0.65x [0.64, 0.66], held-out loss +0.018 [+0.014, +0.023], token accuracy -0.50 [-0.75, -0.25], "
        "61.5 MB (0.45x).",
    ]
    layers = ((Part("attention", 0, 9), Part("mlp", 0, 8)), (Part("attention", 9, 9), Part("mlp", 6, 8)))
    made = record(network("a"), compressed("b", 13.0, 0.0, removed=layers), tokens_per_text=1.1)
    assert summary(made)[-1].startswith("b: 1 of 2 layers removed, widths reduced, vocabulary trimmed. For")
    layers = ((Part("attention", 0, 9), Part("mlp", 0, 8)), (Part("attention", 0, 9), Part("mlp", 8, 8)))
    made = record(network("a"), compressed("b", 13.0, 0.0, removed=layers))
    assert summary(made)[-1].startswith("b: 2 of 2 attention blocks removed, 1 of 2 MLP blocks removed. For")
    assert "b: nothing was removed." in summary(record(network("a"), compressed("b", 13.0, 0.0, removed=())))[-1]
    assert "0.69x the MACs of the unpruned network" in summary(replace(realistic(), cost="macs"))[-1]


@pytest.mark.parametrize(
    ("high", "target", "advised"),
    [(-0.5, TARGET, True), (0.0, TARGET, False), (-0.5, "json>=-1", False), (-0.5, "rouge-l>=-1", True)],
)
def test_worse_answers_come_with_advice(high: float, target: str, advised: bool) -> None:
    """Where the whole interval is below 0 and no target bounds the metric."""
    loss = Quality(1.25, None)
    first = replace(realistic().networks[0], quality={"json": Quality(90.0, None), "loss": loss})
    worse = {"json": Quality(85.0, Interval(-5.0, -9.5, high)), "loss": Quality(1.3, Interval(0.1, 0.0, 0.2))}
    ours = replace(realistic().networks[-1], quality=worse, target=target)
    made = replace(realistic(), metric="json", networks=(first, ours))
    assert ("The answers are worse: --target json=-1 bounds the loss." in summary(made)[-1]) == advised


@pytest.mark.parametrize("made", [realistic(), hostile()], ids=["realistic", "hostile"])
def test_html(made: CompressRecord, tmp_path: Path) -> None:
    """Nothing is loaded or run, texts are shown as they are, and each chart is an image."""
    page = Page(write(made, tmp_path))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(addresses) == 5  # two of the trade-off, one pruned network, two trainings
    for address in addresses:
        kind, _, content = address.partition(",")
        assert kind == "data:image/svg+xml;base64"
        drawn = ElementTree.fromstring(base64.b64decode(content))
        assert not [text for text in drawn.itertext() if "mathdefault" in text]  # a tick of a logarithmic axis
    assert page.text.count(made.source) >= 3  # title, heading, summary
    shown = " ".join(page.text.split())
    for text in (made.data, *made.samples[0].answers.values(), *(step.command for step in made.steps)):
        assert " ".join(text.split()) in shown


@pytest.mark.parametrize("made", [realistic(), hostile()], ids=["realistic", "hostile"])
def test_markdown_is_valid(made: CompressRecord, tmp_path: Path) -> None:
    write(made, tmp_path)
    tokens = MarkdownIt().enable("table").parse((tmp_path / "report.md").read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    assert not {"html_block", "html_inline"} & {token.type for token in (*tokens, *inline)}
    assert [token.attrs["src"] for token in inline if token.type == "image"] == ["report.png"]
    assert [token.attrs["href"] for token in inline if token.type == "link_open"] == ["report.html"]
    rows: list[list[str]] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("th_open", "td_open"):
            rows[-1].append("".join(child.content for child in token.children or ()))
    headings, expected = cells(made.table())
    assert rows[0] == headings and rows[1 : 1 + len(expected)] == expected
    [commands] = [token.content for token in tokens if token.type == "code_block"]
    assert commands == "".join(f"{step.command}\n" for step in made.steps)


def test_the_charts(tmp_path: Path) -> None:
    """The picture shows something; the drawn intervals are those of the table; a pick has the colour of its network."""
    from lonas_edge.pipeline import charts
    from lonas_edge.pipeline.tasks import LANGUAGE_MODEL

    write(realistic(), tmp_path)
    image = matplotlib.image.imread(tmp_path / "report.png")  # [height, width, channels]
    assert min(image.shape[:2]) > 300 and image.std() > 0.02
    figure = charts.networks(realistic(), LANGUAGE_MODEL)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [each.name for each in realistic().networks]
    bars = [line.get_segments()[0] for line in figure.axes[0].collections]
    vertical = [tuple(bar[:, 1].round(3)) for bar in bars if bar[0, 0] == bar[1, 0]]
    assert vertical == [(0.0, 0.0), (0.056, 0.065), (0.014, 0.023)]
    [pick] = [line for line in charts.candidates(realistic(), LANGUAGE_MODEL).axes[0].lines if TARGET in str(line.get_label())]
    assert (pick.get_xdata()[0], pick.get_color()) == (0.69, charts.COLORS[2])
    removed = [patch for patch in charts.kept_parts(realistic().networks[2], 2).axes[0].patches if not patch.get_height()]
    assert len(removed) == 10
