"""CONTRIBUTING's table shows the layers that import-linter checks."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lonas_edge"


def contract() -> list[str]:
    """The layers of the contract, the lowest first; optional ones (in parentheses) only if they exist."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [order] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["id"] == "layers"]
    return [name for layer in reversed(order["layers"]) if (name := layer.strip("()")) == layer or (PACKAGE / name).exists()]


def test_contributing_shows_the_same_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("\n## Layout\n") : text.index("\n## Habits\n")]
    rows = re.findall(r"^\| `([\w/.]+)` \|", table, re.MULTILINE)
    assert [row.removesuffix("/").removesuffix(".py") for row in rows] == contract()
    assert all((PACKAGE / row).exists() for row in rows)


def test_every_module_is_in_a_layer() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(contract()) == packages | modules
