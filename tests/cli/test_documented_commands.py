"""Every `lonas-edge` command in README and docs has valid options; the commands are parsed, not run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lonas_edge.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OLD = {"docs/benchmarks/not-adopted.md"}  # commands of removed features
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    for block in FENCE.findall(page.read_text()):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.startswith(("lonas-edge ", "torchrun ")) and "…" not in line:
                yield line


DOCUMENTED = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:60]}")
    for page in PAGES
    if str(page.relative_to(ROOT)) not in OLD
    for line in commands(page)
]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_the_command_is_valid(line: str) -> None:
    line = re.sub(r" [<>] \S+", "", line)
    words = shlex.split(line.partition(" -m lonas_edge ")[2] or line.removeprefix("lonas-edge "), comments=True)
    assert isinstance(app, click.Group)
    context = click.Context(app)
    _, command, rest = app.resolve_command(context, words)
    assert command
    command.make_context(words[0], rest, parent=context)  # raises for an unknown option, or a missing one


def test_the_pages_have_commands() -> None:
    assert len(DOCUMENTED) > 40


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name in ("tutorials", "reference")], ids=lambda page: page.stem
)
def test_pages_are_short(page: Path) -> None:
    """A tutorial or reference page takes a few minutes; its table of options is generated and not counted."""
    assert len(page.read_text().split()) <= 900
