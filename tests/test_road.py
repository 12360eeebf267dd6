"""The order of the rooms: the imports keep it, and CONTRIBUTING's table is the same."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lonas_edge"


def contract() -> list[str]:
    """The contract's rooms, the first one first; those in parentheses, which need not be there yet, only where they are."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [road] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["id"] == "road"]
    return [name for layer in reversed(road["layers"]) if (name := layer.strip("()")) == layer or (PACKAGE / name).exists()]


def test_the_imports_keep_the_order() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_contributing_shows_the_same_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("\n## Layout\n") : text.index("\n## Habits\n")]
    rooms = re.findall(r"^\| `([\w/.]+)` \|", table, re.MULTILINE)
    assert [room.removesuffix("/").removesuffix(".py") for room in rooms] == contract()
    assert all((PACKAGE / room).exists() for room in rooms)


def test_every_room_is_on_the_road() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(contract()) == rooms | modules
