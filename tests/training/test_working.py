"""The working directory: its settings, its lock, and what is kept in it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import locked
from lonas_edge.training.elastic_trainer import COMPLETE, NotFiniteError
from lonas_edge.training.plan import TrainOptions
from lonas_edge.training.working import Settings, WorkingDirectory

STAGE = {"first": 0, "steps": 8, "lr_steps": 8, "width_indicator": None, "sample_rate": 1}
SETTINGS = Settings({"config.json": "a"}, {"tokenizer.json": "b"}, "c", "d", (STAGE,), 1, TrainOptions(alpha=16, steps=8))


def directory(tmp_path: Path, *checkpoints: int) -> WorkingDirectory:
    """One of an unfinished training, with checkpoints; a negative step's is not complete."""
    working = WorkingDirectory.of(tmp_path / "out")
    working.path.mkdir()
    SETTINGS.write(working.path / "settings.json")
    for step in checkpoints:
        (working.path / f"checkpoint-{abs(step)}").mkdir()
        if step > 0:
            (working.path / f"checkpoint-{step}" / COMPLETE).touch()
    return working


def test_settings_are_read_as_written(tmp_path: Path) -> None:
    path = directory(tmp_path).path / "settings.json"
    assert json.loads(path.read_text())["schema"] == "lonas-edge/training-settings/1"
    assert Settings.read(path) == SETTINGS
    assert SETTINGS.changes(Settings.read(path)) == []


def test_settings_from_before_they_had_a_schema(tmp_path: Path) -> None:
    """A training that was stopped then can be resumed."""
    path = directory(tmp_path).path / "settings.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "schema"}))
    assert Settings.read(path) == SETTINGS


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({}, {"save_steps": 1, "log_steps": 2, "report_to": "wandb", "lr": 0.5}, []),
        ({}, {"seed": 1, "lr": 0.5, "epochs": 2.0}, ["epochs: was None, is 2.0", "seed: was 42, is 1"]),
        (
            {"base": {"config.json": "z"}, "processes": 2},
            {},
            ["base: not the same", "processes: not the same"],
        ),
        ({"stages": ({**STAGE, "steps": 9},), "data": "z"}, {}, ["data: not the same", "stages: not the same as before"]),
        ({"tokenizer": {}, "search_space": "z"}, {"rank": 4}, ["tokenizer: ", "search_space: ", "rank: was 32, is 4"]),
    ],
)
def test_what_may_not_change(changes: dict[str, Any], options: dict[str, Any], expected: list[str]) -> None:
    now = dataclasses.replace(SETTINGS, **changes, options=dataclasses.replace(SETTINGS.options, **options))
    found = now.changes(SETTINGS)
    assert len(found) == len(expected)
    assert all(line.startswith(text) for line, text in zip(found, expected, strict=True))


def test_the_last_checkpoint_is_the_newest_complete_one(tmp_path: Path) -> None:
    working = directory(tmp_path, 9, 100, 30, -200)
    assert working.path == tmp_path / "out.training"
    assert working.last_checkpoint() == working.path / "checkpoint-100"
    with working.held(SETTINGS, resume=True, overwrite=False):
        assert not (working.path / "checkpoint-200").exists()
        with locked(working.path) as free:
            assert not free
    assert sorted(path.name for path in working.path.glob("checkpoint-*")) == [
        "checkpoint-100",
        "checkpoint-30",
        "checkpoint-9",
    ]


def test_a_running_training_keeps_its_incomplete_checkpoint(tmp_path: Path) -> None:
    """It is being written; whoever would resume or start again must not touch it."""
    working = directory(tmp_path, 3, -6)
    with locked(working.path):
        for resume, overwrite in ((True, False), (False, True)):
            with (
                pytest.raises(LonasEdgeError, match="another training is writing there"),
                working.held(SETTINGS, resume, overwrite),
            ):
                pass
    assert (working.path / "checkpoint-6").exists()
    assert (working.path / "settings.json").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyboardInterrupt(), "Training interrupted. The last good checkpoint is kept: "),
        (NotFiniteError("the loss is nan"), "Training stopped: the loss is nan. The last good checkpoint is kept: "),
        (OSError("disk full"), "Training stopped: writing failed: disk full. The last good checkpoint is kept: "),
    ],
)
def test_what_ends_a_training_says_what_is_kept(tmp_path: Path, error: BaseException, text: str) -> None:
    working = directory(tmp_path, 3)
    with pytest.raises(LonasEdgeError) as raised, working.held(SETTINGS, resume=True, overwrite=False):
        raise error
    assert str(raised.value).startswith(f"{text}{working.path / 'checkpoint-3'}. The same command with --resume goes on")


def test_nothing_is_left_that_is_of_no_use(tmp_path: Path) -> None:
    working = WorkingDirectory.of(tmp_path / "out")
    with pytest.raises(LonasEdgeError, match="nothing is kept"), working.held(SETTINGS, resume=False, overwrite=False):
        assert (working.path / "settings.json").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "out.training").mkdir()
    working = WorkingDirectory.of(tmp_path / "out")
    with pytest.raises(LonasEdgeError, match="is not ours"), working.held(SETTINGS, resume=False, overwrite=True):
        pass
    assert (tmp_path / "out.training").exists()
    with pytest.raises(LonasEdgeError, match="not a place for a super-adapter"):
        WorkingDirectory.of(Path("/"))
