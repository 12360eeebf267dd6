"""Print the structure of a package: sizes, shares of its lines, lines per package against the budget, circles of imports.

    python scripts/structure.py [DIRECTORY] [--json]

Definitions, by the syntax tree of each file:

- code lines: without blank lines, comments and docstrings.
- import lines: of import statements. Share of code lines.
- lines of checks and refusals: of `raise`, of an `if` or `except` that only raises, of calls such as `raise_all` or `check_…`,
  of statements that collect errors in a variable, and of functions that are named so. A lower bound. Share of code lines.
- short functions: at most three lines with signature and docstring. Share of all functions.
- comprehensions: list, set and dictionary comprehensions and generator expressions. Per 1,000 code lines.
- circles: groups of modules that import each other, directly or through others. Imports inside functions and under
  `TYPE_CHECKING` count.
"""

import argparse
import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BUDGET = {  # lines of Python, comments and blank lines included; what is not listed is in "the rest"
    "families": 1_900,
    "space": 1_300,
    "data": 2_000,
    "network": 2_700,
    "vocabulary": 600,
    "ir": 1_200,
    "exporting": 1_900,
    "training": 1_600,
    "bench": 1_900,
    "evaluate": 1_700,
    "search": 1_500,
    "drafting": 550,
    "pipeline": 1_900,
    "cli": 1_500,
    "the rest": 1_300,
}
# 24,000, and what later features may add: metrics 600, drafts 700, formats and calls 400, larger models 500, decoders 800
TOTAL = 27_000
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
CHECKS = re.compile(r"^_*(raise|check|refuse|require|reject|validate|assert)(_|$)|_(errors|faults|mismatches|misfits)$")
ERRORS = re.compile(r"^(errors|faults|problems|mismatches|misfits|wrong|missing|unknown)$")


@dataclass(frozen=True)
class Shares:
    """Lines of a package and what they consist of; see the definitions above."""

    lines: int
    code_lines: int
    import_lines: float
    check_lines: float
    short_functions: float
    comprehensions: float


def modules(package: Path) -> dict[str, ast.Module]:
    """Parse all modules of a package, by dotted name."""
    parsed = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        parsed[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return parsed


def measure(package: Path) -> Shares:
    """Count the lines of a package."""
    total, code, imports, checks, functions, short, comprehensions = 0, 0, 0, 0, 0, 0, 0
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        own = code_lines(text, tree)
        total += len(text.splitlines())
        code += len(own)
        imports += len(own & lines_of(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)))
        checks += len(own & lines_of(node for node in ast.walk(tree) if is_check(node)))
        comprehensions += sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                short += len(lines_of([node])) <= 3
    return Shares(total, code, imports / code, checks / code, short / functions, 1000 * comprehensions / code)


def lines_of(nodes: Iterable[ast.AST]) -> set[int]:
    """Numbers of the lines of some statements."""
    numbers: set[int] = set()
    for node in nodes:
        numbers |= set(range(node.lineno, node.end_lineno + 1))  # type: ignore[attr-defined]
    return numbers


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that are neither blank nor comments nor docstrings."""
    numbers = {number for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            numbers -= lines_of([node])
    return numbers


def is_check(node: ast.AST) -> bool:
    """Whether a statement only checks or refuses."""
    if isinstance(node, ast.Raise):
        return True
    if isinstance(node, ast.If):
        return not node.orelse and all(is_check(child) for child in node.body)
    if isinstance(node, ast.ExceptHandler):
        return isinstance(node.body[-1], ast.Raise)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # check_it(…), self.check(…), errors.append(…)
        function = node.value.func
        if isinstance(function, ast.Attribute):
            return bool(CHECKS.search(function.attr)) or is_error_list(function.value)
        return isinstance(function, ast.Name) and bool(CHECKS.search(function.id))
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
        return is_error_list(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    return isinstance(node, ast.FunctionDef) and bool(CHECKS.search(node.name))


def is_error_list(node: ast.AST) -> bool:
    """Whether an expression is a variable that collects errors."""
    return isinstance(node, ast.Name) and bool(ERRORS.search(node.id))


def imports_of(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Names of the known modules that a module imports anywhere, also in functions and under `TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module)
    return (found & known) - {name}


def circles(package: Path) -> list[list[str]]:
    """List the groups of modules that import each other, largest first."""
    parsed = modules(package)
    reached = {name: imports_of(name, tree, set(parsed)) for name, tree in parsed.items()}
    changed = True
    while changed:  # until each module has all modules that it reaches
        changed = False
        for others in reached.values():
            more = set().union(*(reached[other] for other in others)) - others
            others |= more
            changed = changed or bool(more)
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in parsed}
    return sorted((list(group) for group in groups if group), key=lambda group: (-len(group), group))


def lines_per_package(package: Path) -> dict[str, int]:
    """Count the lines of each package of the budget."""
    counts = dict.fromkeys(BUDGET, 0)
    for path in package.rglob("*.py"):
        first = path.relative_to(package).parts[0]
        counts[first if first in BUDGET else "the rest"] += len(path.read_text(encoding="utf-8").splitlines())
    return counts


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("package", nargs="?", type=Path, default=Path(__file__).parents[1] / "lonas_edge")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    package = arguments.package.resolve()
    shares, groups = measure(package), circles(package)
    if arguments.json:
        print(json.dumps({**vars(shares), "packages": lines_per_package(package), "circles": groups}, indent=2))
        return
    print(f"lines                        {shares.lines:>7,}")
    print(f"code lines                   {shares.code_lines:>7,}")
    print(f"import lines                 {shares.import_lines:>7.1%}")
    print(f"checks and refusals          {shares.check_lines:>7.1%}")
    print(f"functions of <= 3 lines      {shares.short_functions:>7.1%}")
    print(f"comprehensions / 1,000 lines {shares.comprehensions:>7.1f}")
    print(f"modules                      {len(modules(package)):>7}")
    if package.name == "lonas_edge":
        print("\npackage        lines  budget")
        for name, count in lines_per_package(package).items():
            print(f"{name:<12} {count:>7,} {BUDGET[name]:>7,}{'  over' if count > BUDGET[name] else ''}")
        print(f"{'total':<12} {shares.lines:>7,} {TOTAL:>7,}{'  over' if shares.lines > TOTAL else ''}")
    print(f"\ncircles: {len(groups)}")
    for group in groups:
        print(f"  {', '.join(group)}")


if __name__ == "__main__":
    main()
