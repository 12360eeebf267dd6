"""Matplotlib figures as SVG inside an HTML page, in the page's colours and font."""

import io
import re
from html import escape
from typing import Any

from lonas_edge.pipeline.charts import COLORS, Ink, settings

# matplotlib draws with these colours; the page's style sheet has the real ones, for a light and for a dark background
PLACEHOLDERS = Ink(text="#0a0b00", series=tuple(f"#0a0b{index + 1:02x}" for index in range(COLORS)))

_STYLE = re.compile(r"<style.*?</style>|<!--.*?-->", re.DOTALL)
_BETWEEN = re.compile(r">\s+<")
_TAG = re.compile(r"<[^>]*>")  # matplotlib escapes `>` in text
_FAMILY = re.compile(r" font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"| xmlns(:xlink)?=\"[^\"]*\"| version=\"[^\"]*\"")
_SIZE = re.compile(r" (width|height)=\"[\d.]+pt\"")
_NO_STROKE = re.compile(r"(; )?stroke: #000000; stroke-opacity: 0(?!\.)")
_PATH = re.compile(r" d=\"([^\"]*)\"")
_BLANKS = re.compile(r"\s*([A-Za-z])\s*|\s+")
_DECIMALS = re.compile(r"(\d+\.\d\d)\d+")
_ID = re.compile(r" id=\"([^\"]*)\"")
_REFERENCE = re.compile(r"(url\(#|href=\"#)([^)\"]*)")


def inline_svg(figure: Any, name: str, label: str) -> str:
    """Return a figure that was drawn with `PLACEHOLDERS`.

    `name` is unique in the page; `label` describes the figure to screen readers.
    """
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({**settings(PLACEHOLDERS), "svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    text = _BETWEEN.sub("><", _STYLE.sub("", text[text.index("<svg") :]))
    used = {reference for _, reference in _REFERENCE.findall(text)}
    content = _TAG.sub(lambda tag: _in_page(tag.group(), name, used), text)
    return content.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def _in_page(tag: str, name: str, used: set[str]) -> str:
    """Shorten a tag, keep only ids that are used, prefix them, and take colours from the style sheet."""
    tag = _FAMILY.sub("", tag)
    if tag.startswith("<svg"):
        tag = _SIZE.sub("", tag)
    tag = _ID.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag)
    tag = _REFERENCE.sub(rf"\g<1>{name}-\g<2>", tag)
    tag = _DECIMALS.sub(r"\1", _NO_STROKE.sub("", tag))
    tag = _PATH.sub(lambda path: f' d="{_BLANKS.sub(lambda blank: blank[1] or " ", path[1])}"', tag)
    tag = tag.replace(PLACEHOLDERS.text, "currentColor")
    for index, color in enumerate(PLACEHOLDERS.series):
        tag = tag.replace(color, f"var(--series-{index})")
    return tag
