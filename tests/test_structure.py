"""The size of the package and circles between its modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lonas_edge"


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    """`scripts/structure.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "scripts/structure.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_are_within_the_budget(structure: ModuleType) -> None:
    per_package = structure.lines_per_package(PACKAGE)
    table = "\n".join(f"{name:<12} {lines:>6,} of {structure.BUDGET[name]:,}" for name, lines in per_package.items())
    total = sum(per_package.values())
    print(f"{table}\n{'total':<12} {total:>6,} of {structure.TOTAL:,}")
    assert total <= structure.TOTAL, f"{total:,} lines; expected {structure.TOTAL:,} at most\n{table}"


def test_no_modules_import_each_other(structure: ModuleType) -> None:
    assert structure.circles(PACKAGE) == []


def test_all_kinds_of_imports_count(structure: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    files = {
        "__init__": "",
        "a": "from package.b import f",
        "b": "if TYPE_CHECKING:\n    from package import c",
        "c": "def f():\n    import package.a",
        "d": "from package.a import f",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    assert structure.circles(package) == [["package.a", "package.b", "package.c"]]
