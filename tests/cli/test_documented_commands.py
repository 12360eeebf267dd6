"""Every `lonas-edge` command in README, docs and the demo has valid options; the commands are parsed, not run."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lonas_edge.cli.command import _RENAMED
from lonas_edge.cli.commands import COMMANDS, app

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts/demo.sh"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OLD = {"docs/benchmarks/not-adopted.md"}  # commands of removed features
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    text = page.read_text()
    scripted = "\n".join(re.findall(r"^run (lonas-edge (?:\\\n|.)*)", text, re.MULTILINE))
    for block in [scripted] if page == DEMO else FENCE.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.startswith(("lonas-edge ", "torchrun ")) and "…" not in line:
                yield line


DOCUMENTED = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:60]}")
    for page in (*PAGES, DEMO)
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
    known = {name for param in command.params for name in param.opts}
    assert not {word.partition("=")[0] for word in rest} & (_RENAMED.keys() - known)
    command.make_context(words[0], rest, parent=context)  # raises for an unknown option, or a missing one


def test_the_pages_have_commands() -> None:
    assert len(DOCUMENTED) > 40
    assert sum("demo.sh" in str(parameter.id) for parameter in DOCUMENTED) == 2


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name in ("tutorials", "reference")], ids=lambda page: page.stem
)
def test_pages_are_short(page: Path) -> None:
    """A tutorial or reference page takes a few minutes; its table of options is generated and not counted."""
    written = re.sub(
        r"^<!-- (options: \w+|families) -->\n.*?^<!-- end -->$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    assert len(written.split()) <= 900


@pytest.mark.parametrize("page", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda page: page.name)
def test_the_tables_are_those_of_the_package(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise run `python scripts/docs_tables.py`."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    docs_tables = importlib.import_module("docs_tables")
    text = page.read_text()
    assert docs_tables.with_tables(text) == text
    command = page.stem in COMMANDS
    assert ("<!-- options:" in text) == command and ("<!-- end -->" in text) == (command or page.stem == "families")
