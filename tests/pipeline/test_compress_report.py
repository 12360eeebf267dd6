"""The report of `compress`: its table, escaped text, edge cases, and its look in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from compress_records import FIRST, HOSTILE, RIGHT_TO_LEFT, SECOND, compressed, hostile, network, picture, realistic, small
from markdown_it import MarkdownIt
from matplotlib.colors import to_hex

from lonas_edge.markdown import in_markdown
from lonas_edge.pipeline.record import Candidate, CompressRecord, Curve, Interval, Sample, Step
from lonas_edge.pipeline.report import write_report
from lonas_edge.pipeline.tables import conditions, duration, network_table, show, summary
from lonas_edge.pipeline.text import printable
from lonas_edge.space.picture import Part

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT = 1_000_000  # bytes of report.html
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Parsed(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "each tag closes the last one that is open"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def written(record: CompressRecord, folder: Path) -> str:
    """Write a report, and return its HTML."""
    write_report(record, folder)
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.png", "report.html"}
    assert (folder / "report.html").stat().st_size < LIMIT
    return (folder / "report.html").read_text(encoding="utf-8")


def largest() -> CompressRecord:
    """Eight networks of 80 different layers, thousands of samples and candidates, texts that grow when they are escaped."""
    names = [f"network {index}" for index in range(8)]
    numbers = tuple(20 + index % 97 / 10 for index in range(5000))
    networks = [
        compressed(name, 12.0, 0.01, removed=picture(80, seed), tpot_samples=numbers, ttft_samples=numbers)
        for seed, name in enumerate(names)
    ]
    losses = tuple((step, 1 + 1 / step) for step in range(1, 20_000))
    samples = tuple(Sample('"' * 20_000, "é" * 20_000, dict.fromkeys(names, "<" * 20_000)) for _ in range(100))
    return small(
        *networks,
        candidates=tuple(Candidate(1 / (2 + index % 991), 1 + index % 7, False) for index in range(20_000)),
        curves=tuple(Curve(name, losses, losses[::500]) for name in names),
        samples=samples,
        options={"long": "x" * 1_000_000},
    )


RECORDS: dict[str, Callable[[], CompressRecord]] = {
    "realistic": realistic,
    "80 layers": lambda: realistic(80),
    "hostile": hostile,
    "largest": largest,
    "one network": lambda: small(network("only", folder="only")),
    "unpruned adapter": lambda: small(network("unpruned INT8"), compressed("unpruned INT4", 15.0, 0.02)),
    "nothing": small,
}


@dataclass(frozen=True)
class Report:
    """A record, and the directory of its report."""

    record: CompressRecord
    folder: Path
    html: str


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """Writes each report once: `reports(name)`, a name of `RECORDS`."""

    @cache
    def make(name: str) -> Report:
        record, folder = RECORDS[name](), tmp_path_factory.mktemp("report")
        return Report(record, folder, written(record, folder))

    return make


@pytest.fixture(params=RECORDS)
def report(request: pytest.FixtureRequest, reports: Callable[[str], Report]) -> Report:
    return reports(request.param)


# the table: values by hand from `network` and `compressed`


def test_the_table() -> None:
    headings, rows = network_table(small(network("unpruned INT8"), compressed(f"{FIRST} INT4", 13.0, 0.0184)))
    assert headings == [
        *("network", "held-out loss", "loss Δ [95 %]", "token accuracy Δ, points [95 %]"),
        *("TTFT, ms", "TTFT ratio [95 %]", "TPOT, ms", "TPOT ratio [95 %]", "size, MB"),
    ]
    assert rows[0] == ["unpruned INT8", "1.250", "–", "–", "200.0", "–", "20.00", "–", "136"]
    assert rows[1] == [
        *("tpot<=0.7x INT4", "1.268", "+0.018 [+0.014, +0.023]", "-0.50 [-0.75, -0.25]"),
        *("130.0", "0.65x [0.63, 0.67]", "13.00", "0.65x [0.64, 0.66]", "61.5"),
    ]


def test_numbers_that_are_not_finite_and_a_difference_of_nothing() -> None:
    bad, nothing = Interval(float("nan"), float("-inf"), float("inf")), Interval(-0.0001, -0.0004, 0.0)
    changes = {"loss": float("inf"), "loss_difference": bad, "accuracy_difference": nothing, "tpot_ratio": bad}
    [row] = network_table(small(compressed("a", 13.0, 0.0, **changes)))[1]
    assert (row[1], row[2], row[3], row[7]) == ("∞", "NaN [-∞, +∞]", "+0.00 [+0.00, +0.00]", "NaNx [-∞, ∞]")


def test_the_summary() -> None:
    """What was removed, what the search predicted for the target, and what was measured."""
    steps = (Step("search", "lonas-edge search", 3000, None), Step("export", "lonas-edge export", 4000, None))
    removed = (*((Part("attention", 0, 9), Part("mlp", 0, 8)),) * 2, (Part("attention", 9, 9), Part("mlp", 6, 8)))
    found = (Candidate(0.83, 0.02, True), Candidate(0.69, 0.1234, True, ("kl<=1", FIRST)))
    ours = compressed("compressed INT4", 13.0, 0.0184, removed=removed, target=FIRST, weight_format="int4_sym")
    stock = compressed("unpruned INT4 (optimum-cli)", 16.0, 0.06, folder=None)
    networks = network("unpruned INT8 (optimum-cli)"), stock, ours
    options = {"vocabulary": "auto"}  # 13 / 16 ms x 1.1 tokens: 0.89x
    assert summary(small(*networks, steps=steps, candidates=found, options=options, tokens_per_text=1.1)) == [
        "smollm2-lora (base model SmolLM2-135M) was compressed with 4,000 examples of train.jsonl in 1 h 57 min.",
        "compressed INT4: 2 of 3 attention blocks removed, 2 of 3 MLP blocks removed, widths reduced, vocabulary trimmed. "
        "For tpot<=0.7x, the search predicted 0.69x the TPOT of the unpruned network in the same format, at a KL divergence of "
        "0.123 nats before the recovery; measured: 0.89x that of unpruned INT4 (optimum-cli). Compared with unpruned INT8 "
        "(optimum-cli): TPOT 0.65x [0.64, 0.66], "
        "held-out loss +0.018 [+0.014, +0.023], 61.5 MB (0.45x).",
    ]
    [*_, sizes] = summary(small(*networks, candidates=found, cost="macs"))
    assert "0.69x the MACs of the unpruned network in the same format, at" in sizes
    assert summary(small(network("only", folder="only")))[1:] == [
        "No sub-networks were searched.",
        "only: nothing was removed. TPOT 20.00 ms, held-out loss 1.250, 136 MB.",
    ]
    assert summary(small(network("unpruned")))[-1] == "No compressed network was kept."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3571, "1 h 0 min"), (None, "–")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_values_of_options() -> None:
    values = (None, True, 0.0001, ["a", None], {"a": [1]}, [], 0, "")
    assert [show(value) for value in values] == ["–", "yes", "0.0001", "a, –", '{"a": [1]}', "–", "0", "–"]
    assert conditions(realistic())["Data"]["held-out examples"] == "200"


def test_without_torch_and_heavy_imports() -> None:
    code = "import sys, lonas_edge.pipeline.report; print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# HTML


def test_html_is_well_formed_and_loads_nothing(report: Report) -> None:
    text, page = report.html, Parsed(report.html)
    assert page.open == [] and not {"script", "img", "link", "iframe", "object", "image", "foreignobject"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "srcset", "action", "data") and not name.startswith("on")
        assert not name.endswith("href") or value.startswith("#")
        assert name in ("aria-label", "class") or ("http:" not in value and "https:" not in value)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = [value for name, value in page.attributes if name.endswith("href")]
    references += [f"#{found}" for _, value in page.attributes for found in re.findall(r"url\(#([^)]*)\)", value)]
    assert all(re.fullmatch(r"#[^()]*", reference) and reference[1:] in ids for reference in references)
    assert not re.search(r"url\((?!#)", " ".join(value for _, value in page.attributes))
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawn.replace("<svg", '<svg xmlns:xlink="x"', 1))
        assert "#0a0b" not in drawn and "#000000" not in drawn, "all colours come from the style sheet"


def test_sections_are_in_order(report: Report) -> None:
    sections = ["networks", "trade-off", "removed", "training", "latency", "answers", "steps", "conditions"]
    assert re.findall(r'<h2 id="([^"]*)"', report.html) == sections


def test_texts_of_models_and_data_are_shown_as_they_are(reports: Callable[[str], Report]) -> None:
    page = Parsed(reports("hostile").html)
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    # heading, title, summary (source, data), prompt, its answer, condition: at the least
    assert page.text.count(shown) > 10 and RIGHT_TO_LEFT in page.text and "49" not in page.text.replace("349", "")
    assert "x" * 8000 + " … (100,000 characters)" in page.text and "Texts are cut after 8,000 characters." in page.text


def test_answers_are_side_by_side_in_the_order_of_the_table(tmp_path: Path) -> None:
    answers = {"other": "three", "b": "two", "a": " \n"}
    record = small(network("a"), compressed("b", 12, 0.1), samples=(Sample("Why?", "Because.", answers),))
    text = written(record, tmp_path)
    section = Parsed(text[text.index('<h2 id="answers"') : text.index('<h2 id="steps"')].rpartition("</section>")[0]).text
    assert " ".join(section.split()) == "Sample answers Why? Why? Reference answer Because. a Empty. b two other three"


def test_equal_pictures_are_drawn_once(tmp_path: Path) -> None:
    removed, whole = picture(30), ((Part("attention", 9, 9), Part("mlp", 1536, 1536)),) * 30
    networks = [compressed(name, 12, 0.1, removed=layers) for name, layers in (("a", removed), ("b", removed), ("c", whole))]
    text = written(small(network("unpruned"), *networks), tmp_path)
    section = text[text.index('<h2 id="removed"') : text.index('<h2 id="training"')]
    heads, blocks = sum(layer[0].kept for layer in removed), sum(layer[0].kept == 0 for layer in removed)
    assert section.count("<svg") == 1 and "<bdi>a, b</bdi>" in section and "Nothing is removed." in section
    assert f"attention: {100 * heads / 270:.0f} % of heads kept, {blocks} of 30 blocks removed" in section


def test_figures_say_what_they_do_not_show(reports: Callable[[str], Report], tmp_path: Path) -> None:
    text = html.unescape(reports("hostile").html)
    for note in (
        "Not shown: 2 without a finite figure. Not shown: 1 with a KL of 0.",
        "4 losses are not finite and not shown.",
        "No finite losses were recorded.",
    ):
        assert note in text
    assert re.search(r"Not shown, without a finite figure: a\|b <script>.*…, c, huge\.", text)
    text = written(small(network("only")), tmp_path)
    for note in ("No sub-networks were searched.", "Nothing was trained.", "No measured network is pruned.", "No steps"):
        assert note in text


def test_every_latency_sample_is_drawn(tmp_path: Path) -> None:
    times = tuple(20 + index / 7 for index in range(23))
    text = written(small(network("a", tpot_samples=times), network("b", tpot_samples=())), tmp_path)
    figure = text[text.index("TPOT (time per output token)") : text.index('<h2 id="answers"')]
    assert len(re.findall(r"<use [^>]*fill: var\(--series-0\)", figure)) == 23


def test_commands_can_be_copied(reports: Callable[[str], Report]) -> None:
    report = reports("realistic")
    commands = [html.unescape(found) for found in re.findall(r"<code[^>]*>(.*?)</code>", report.html, re.DOTALL)]
    assert commands == [step.command for step in report.record.steps] and "user-select: all" in report.html


def test_colours_are_legible_on_both_backgrounds(tmp_path: Path) -> None:
    """WCAG 2.2, 1.4.11: graphics have a contrast of 3."""

    def luminance(color: str) -> float:
        channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    text = written(small(), tmp_path)
    themes = re.findall(r"--page: (#\w+);(.*?)}", text.replace("#fff;", "#ffffff;"), re.DOTALL)
    assert len(themes) == 2
    for page, rules in themes:
        colors = re.findall(r"--series-\d: (#\w{6})", rules)
        assert len(colors) == 8
        for color in colors:
            bright, dark = sorted((luminance(color) + 0.05, luminance(page) + 0.05), reverse=True)
            assert bright / dark >= 3, (color, page)


# Markdown and PNG


def test_markdown_is_valid(report: Report) -> None:
    record, text = printable(report.record), (report.folder / "report.md").read_text(encoding="utf-8")
    tokens = MarkdownIt().enable("table").parse(text)
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
    headings, cells = network_table(record)
    assert rows[0] == headings and rows[1 : 1 + len(cells)] == [[" ".join(row[0].split()), *row[1:]] for row in cells]
    fences = [token.content for token in tokens if token.type == "fence" and token.info == "sh"]
    assert fences == (["\n".join(step.command for step in record.steps) + "\n"] if record.steps else [])


@pytest.mark.parametrize(
    "text", ["# a", "- a", "*a* _b_ c_d", "a|b", "![a](b)", "[a]: b", "a\nb", "<b>", "&amp;", "~~a~~", "a\\|b"]
)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(in_markdown(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children or ()} <= {"text", "text_special"}
    assert "".join(child.content for child in tokens[1].children or ()) == text.replace("\n", " ")


def test_the_same_record_gives_the_same_files(reports: Callable[[str], Report], tmp_path: Path) -> None:
    write_report(realistic(), tmp_path)
    for name in ("report.md", "report.png", "report.html"):
        assert (tmp_path / name).read_bytes() == (reports("realistic").folder / name).read_bytes()


def test_the_plot(report: Report) -> None:
    image = matplotlib.image.imread(report.folder / "report.png")  # [height, width, channels]
    assert min(image.shape[:2]) > 500 and image.std() > 0.02


def test_picks_look_like_their_networks() -> None:
    from lonas_edge.pipeline.charts import ON_WHITE, look, search

    record = realistic()
    scatter = [
        each for each in search(record, ON_WHITE).figure.axes[0].collections if str(each.get_label()).startswith("tpot<=")
    ]
    colors = {str(each.get_label()).partition(":")[0]: to_hex(each.get_facecolor()[0]) for each in scatter}
    assert colors == {FIRST: to_hex(look(ON_WHITE, 2).color), SECOND: to_hex(look(ON_WHITE, 3).color)}


def test_networks_differ_in_the_plot() -> None:
    from lonas_edge.pipeline.charts import COLORS, ON_WHITE, look, measured

    assert len({look(ON_WHITE, index) for index in range(7 * COLORS)}) == 7 * COLORS
    figure = measured(realistic(), ON_WHITE).figure
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [n.name for n in realistic().networks]
    bars = [line.get_segments()[0] for line in figure.axes[0].collections]
    vertical = [bar[:, 1] for bar in bars if bar[0, 0] == bar[1, 0]]
    assert [tuple(ends.round(3)) for ends in vertical] == [(0.057, 0.066), (0.014, 0.023), (0.090, 0.099)]


# in a browser

SCRIPT = """
addEventListener("load", () => {
  const results = [...document.querySelectorAll("iframe")].map(frame => {
    const inner = frame.contentDocument, root = inner.documentElement, view = inner.defaultView;
    inner.querySelectorAll("details").forEach(details => details.open = true);
    const boxes = figure => [...figure.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    const overlaps = [], outside = [];
    for (const figure of inner.querySelectorAll("svg")) {
      const frame = figure.getBoundingClientRect(), all = boxes(figure);
      all.forEach(([name, box], index) => {
        if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1) outside.push(name);
        for (const [other, next] of all.slice(index + 1))
          if (box.left < next.right - 1 && next.left < box.right - 1 && box.top < next.bottom - 3 && next.top < box.bottom - 3)
            overlaps.push([name, other]);
      });
    }
    const text = inner.querySelector("svg text");
    return {
      scroll: root.scrollWidth, width: view.innerWidth, overlaps, outside,
      page: view.getComputedStyle(inner.body).backgroundColor,
      ink: text && view.getComputedStyle(text).fill,
      font: text && text.getBoundingClientRect().height,
      columns: new Set([...inner.querySelectorAll("#latency ~ .figures figure")].map(f => f.offsetTop)).size,
    };
  });
  document.getElementById("results").textContent = JSON.stringify(results);
});
"""


def browse(page: str, folder: Path, mode: str) -> tuple[str, str]:
    """The DOM after the scripts of a page, and what the browser reported."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    scheme = {"light": 1, "dark": 0}[mode]
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        "--virtual-time-budget=5000",
        "--enable-logging=stderr",
    )
    settings = (f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}")
    command = [CHROMIUM, *options, *settings, "--window-size=1700,900", path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode(), done.stderr.decode(errors="replace")


def results_of(dom: str) -> list[dict[str, Any]]:
    [found] = re.findall(r'<pre id="results">(.*?)</pre>', dom, re.DOTALL)
    results: list[dict[str, Any]] = json.loads(html.unescape(found))
    return results


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)")
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_in_a_browser(mode: str, reports: Callable[[str], Report], tmp_path: Path) -> None:
    """Frames stand for windows: headless Chromium's are at least 500 pixels wide."""
    widths = (400, 1600)
    frames = []
    for name in ("realistic", "80 layers", "hostile", "one network"):
        text = html.escape(reports(name).html)
        frames += [f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{text}"></iframe>' for width in widths]
    page = f'<!doctype html><pre id="results"></pre>{"".join(frames)}<script>{SCRIPT}</script>'
    dom, reported = browse(page, tmp_path, mode)
    assert "CONSOLE" not in reported
    results = results_of(dom)
    assert [result["width"] for result in results] == [*widths] * 4
    for result in results:
        assert result["scroll"] <= result["width"]
        assert result["overlaps"] == [] and result["outside"] == []
        assert result["page"] == ("rgb(255, 255, 255)" if mode == "light" else "rgb(21, 23, 26)")
        assert result["ink"] == ("rgb(28, 30, 33)" if mode == "light" else "rgb(230, 232, 235)")
        assert result["font"] >= 10, "pixels of a line of text in a figure"
        assert result["columns"] == (2 if result["width"] == 400 else 1), "figures below or next to each other"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)")
def test_the_browser_would_report_errors_and_scripts_do_not_run(reports: Callable[[str], Report], tmp_path: Path) -> None:
    """The policy of the page blocks a script that got in, and the console says so."""
    text = reports("realistic").html.replace("</main>", "<script>document.title = 'ran'</script></main>")
    dom, reported = browse(text, tmp_path, "light")
    assert "CONSOLE" in reported and "<title>ran" not in dom


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = replace(realistic(), samples=realistic().samples[:1])
    record.write(tmp_path / "compress.json")
    assert CompressRecord.read(tmp_path / "compress.json") == record
