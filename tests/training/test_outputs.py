"""Where a training writes, and when."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinySource
from training_runs import (
    ADAPTER,
    ORDER,
    RECORD,
    SPACE,
    VARIANTS,
    names_in,
    run,
    run_killed,
    same,
    working,
)

from lonas_edge.errors import LonasEdgeError


def test_output_appears_when_it_is_done(llama: TinySource, data: Path, tmp_path: Path) -> None:
    seen = []

    def look(step: int, steps: int, _log: Any) -> None:
        seen.append((step, steps))
        assert names_in(tmp_path) == ["out.training"]

    run(llama, data, tmp_path / "out", report=look)
    assert seen[0] == (1, 8)
    assert seen[-1] == (8, 8)
    assert names_in(tmp_path) == ["out"]
    expected = ["README.md", "adapter_config.json", ADAPTER, ORDER, SPACE, RECORD]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)


def test_output_that_appears_meanwhile_is_kept(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    """The training is not lost: once it has been moved away, --resume writes what the last checkpoint holds."""
    data, folder, record = uninterrupted("middle-of-epoch")
    output, changes = tmp_path / "out", VARIANTS["middle-of-epoch"][1]

    def appear(step: int, _steps: int, _log: Any) -> None:
        if step == 6 and not output.exists():
            output.mkdir()
            (output / "theirs").write_text("theirs")

    with pytest.raises(LonasEdgeError, match="was created while this run worked"):
        run(llama, data, output, report=appear, **changes)
    assert [path.name for path in output.iterdir()] == ["theirs"]
    output.rename(tmp_path / "moved")
    resumed = run(llama, data, output, resume=True, **changes)
    assert resumed["resumed_from_step"] == 8
    same(output, resumed, folder, record)
    assert not working(output).exists()


def test_overwrite_replaces_output_and_unfinished_training(llama: TinySource, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_killed(llama, data, output, at=5, seed=1)
    output.mkdir()
    (output / "mine").write_text("mine")
    (output / RECORD).write_text('{"schema": "lonas-edge/training/4"}')  # lonas-edge wrote it
    with pytest.raises(LonasEdgeError, match="already exists"):
        run(llama, data, output)
    run_killed(llama, data, output, at=4, overwrite=True)
    assert (output / "mine").read_text() == "mine"  # until the new one is done
    run(llama, data, output, overwrite=True, steps=2)
    assert not (output / "mine").exists()
    assert json.loads((output / RECORD).read_text())["steps"] == 2
    assert names_in(tmp_path) == ["out"]
