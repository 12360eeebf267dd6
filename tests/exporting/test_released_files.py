"""When an output is renamed to its final name, none of its files is open or mapped: Windows would refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_models import TinySource

from lonas_edge import output as output_module


def used(folder: Path) -> set[str]:
    """Names of its files that this process has open or mapped."""
    process = psutil.Process()
    paths = [file.path for file in process.open_files()]
    paths += [file.path for file in process.memory_maps()] if hasattr(process, "memory_maps") else []  # macOS has none
    return {Path(path).name for path in paths if str(folder) in path}


@pytest.mark.parametrize("case", ["plain", pytest.param("calibrated", marks=pytest.mark.slow)])
def test_an_export(case: str, run_cli: Callable, llama: TinySource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[int, set[str]]] = []
    sync = output_module._sync

    def watched(*paths: Path) -> None:
        if len(paths) > 1:  # the files of the output, and its directory
            seen.append((len(paths) - 1, used(paths[-1])))
        sync(*paths)

    monkeypatch.setattr(output_module, "_sync", watched)
    options = ["--weight-format", "int4"]
    if case == "calibrated":
        examples = [{"instruction": f"What is {a} plus {a}?", "output": f"the {a + a}"} for a in range(30)]
        (tmp_path / "data.json").write_text(json.dumps(examples))
        options += ["--calibration", tmp_path / "data.json", "--num-prompts", "8"]
    ran = run_cli("export", *llama.arguments(), "--output", tmp_path / "out", *options)
    assert ran.code == 0, ran.err
    [(files, still)] = seen
    assert files > 5 and still == set()
