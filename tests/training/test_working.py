"""The working directory: its settings, its lock, and what is kept in it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import write_checkpoint

import lonas_edge.training.working
from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import locked
from lonas_edge.training.checkpoints import COMPLETE, NotSavedError
from lonas_edge.training.elastic_trainer import NotFiniteError
from lonas_edge.training.plan import TrainOptions
from lonas_edge.training.working import Resumption, Settings, WorkingDirectory

STAGE = {"first": 0, "steps": 8, "lr_steps": 8, "width_indicator": None, "sample_rate": 1}
OPTIONS = TrainOptions(alpha=16, steps=8)
SETTINGS = Settings({"config.json": "a"}, {}, (), {}, None, {"tokenizer.json": "b"}, (("c", 1.0),), "d", (STAGE,), 1, OPTIONS)


LESS = "A smaller --micro-batch-size or --gradient-checkpointing needs less."
NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 3"),
    RuntimeError("std::bad_alloc"),
)


def directory(tmp_path: Path, *checkpoints: int) -> WorkingDirectory:
    """One of an unfinished training, with checkpoints; a negative step's is not complete."""
    working = WorkingDirectory.of(tmp_path / "out")
    working.path.mkdir()
    SETTINGS.write(working.path / "settings.json")
    for step in checkpoints:
        made = write_checkpoint(working.path, abs(step))
        if step < 0:
            (made / COMPLETE).unlink()
    return working


def test_settings_are_read_as_written(tmp_path: Path) -> None:
    path = directory(tmp_path).path / "settings.json"
    assert json.loads(path.read_text())["schema"] == "lonas-edge/training-settings/1"
    assert Settings.read(path) == SETTINGS
    assert SETTINGS.changes(Settings.read(path), {}) == []


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({}, {"save_steps": 1, "log_steps": 2, "report_to": "wandb", "lr": 0.5}, []),
        ({}, {"seed": 1, "lr": 0.5, "epochs": 2.0}, ["epochs: was None, is 2.0", "seed: was 42, is 1"]),
        (
            {"base": {"config.json": "z"}, "processes": 2},
            {},
            ["base: not the same as before: config.json", "processes: not the same"],
        ),
        (
            {"stages": ({**STAGE, "steps": 9},), "data": (("z", 1.0),)},
            {},
            ["data: not the same as before: its/data.json", "stages: not the same as before"],
        ),
        ({"start": {"adapter_config.json": "z"}, "widths": (8,)}, {}, ["start: not the same as before: adapter", "widths: "]),
        ({"teacher": {"model.safetensors": "z"}}, {"temperature": 2.0}, ["teacher: ", "temperature: was 1.0, is 2.0"]),
        ({"tokenizer": {}, "search_space": "z"}, {"rank": 4}, ["tokenizer: ", "search_space: ", "rank: was 32, is 4"]),
    ],
)
def test_what_may_not_change(changes: dict[str, Any], options: dict[str, Any], expected: list[str]) -> None:
    now = dataclasses.replace(SETTINGS, **changes, options=dataclasses.replace(SETTINGS.options, **options))
    found = now.changes(SETTINGS, {"data": Path("its/data.json")})
    assert len(found) == len(expected)
    assert all(line.startswith(text) for line, text in zip(found, expected, strict=True))


def test_the_last_checkpoint_is_the_newest_complete_one(tmp_path: Path) -> None:
    working = directory(tmp_path, 9, 100, 30, -200)
    assert working.path == tmp_path / "out.training"
    settings = dataclasses.replace(SETTINGS, stages=({**STAGE, "steps": 100}, {**STAGE, "steps": 100}))
    settings.write(working.path / "settings.json")
    with working.held(settings, resume=True, overwrite=False) as found:
        assert found == Resumption(working.path / "checkpoint-100")
        assert found.told() == f"going on from {working.path / 'checkpoint-100'}"
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
        (NotSavedError("X is full"), "Training stopped: X is full. The last good checkpoint is kept: "),
        *((error, f"Training stopped: out of memory. {LESS} The last good checkpoint is kept: ") for error in NO_MEMORY),
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


def held(working: WorkingDirectory, resume: bool = False, overwrite: bool = False) -> list[str]:
    """What lies in a directory that a training has."""
    with working.held(SETTINGS, resume, overwrite):
        return sorted(path.name for path in working.path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_directory_is_taken(tmp_path: Path, overwrite: bool) -> None:
    working = WorkingDirectory.of(tmp_path / "out")
    working.path.mkdir()
    with pytest.raises(LonasEdgeError, match="there is no unfinished training to --resume; leave --resume out"):
        held(working, resume=True)
    assert held(working, overwrite=overwrite) == ["settings.json"]


@pytest.mark.parametrize(
    "left", [["channel_order.safetensors"], ["checkpoint-3", "runs"], [".settings.json.partial", "damaged-6"]]
)
def test_what_a_training_left_without_its_settings(tmp_path: Path, left: list[str]) -> None:
    """Whatever is not the way is told with the one that is."""
    working = WorkingDirectory.of(tmp_path / "out")
    for name in left:
        (working.path / name).mkdir(parents=True)
        (working.path / name / COMPLETE).touch()
    for resume, text in ((False, "without its settings.json: no --resume"), (True, "its settings.json is missing")):
        with pytest.raises(LonasEdgeError, match=text) as raised:
            held(working, resume=resume)
        assert str(raised.value).endswith("--overwrite, without --resume, starts again.")
        assert sorted(path.name for path in working.path.iterdir()) == sorted(left)
    assert held(working, overwrite=True) == ["settings.json"]


@pytest.mark.parametrize("content", ["", "cut off", "{}", '{"schema": "lonas-edge/training-settings/9"}', "\0" * 9])
def test_damaged_settings(tmp_path: Path, content: str) -> None:
    working = directory(tmp_path, 3)
    (working.path / "settings.json").write_text(content)
    with pytest.raises(LonasEdgeError) as raised:
        held(working, resume=True)
    assert str(raised.value).startswith(str(working.path / "settings.json"))
    assert str(raised.value).endswith("--overwrite, without --resume, starts again.")
    assert (working.path / "checkpoint-3").exists()
    assert held(working, overwrite=True) == ["settings.json"]


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (False, True), (True, False)])
def test_a_directory_that_is_not_ours(tmp_path: Path, resume: bool, overwrite: bool) -> None:
    (tmp_path / "out.training/checkpoint-3").mkdir(parents=True)
    (tmp_path / "out.training/holiday.jpg").write_text("mine")
    working = WorkingDirectory.of(tmp_path / "out")
    with pytest.raises(LonasEdgeError, match=r"holiday\.jpg in it is not ours"):
        held(working, resume, overwrite)
    assert sorted(path.name for path in working.path.iterdir()) == ["checkpoint-3", "holiday.jpg"]
    with pytest.raises(LonasEdgeError, match="not a place for a super-adapter"):
        WorkingDirectory.of(Path("/"))


def test_what_the_user_put_there_stays(tmp_path: Path) -> None:
    working = directory(tmp_path, 3)
    (working.path / "notes.txt").write_text("mine")
    assert held(working, overwrite=True) == ["notes.txt", "settings.json"]
    assert [path.name for path in working.path.iterdir()] == ["notes.txt"]


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out.training").write_text("mine")
    for resume in (False, True):
        with pytest.raises(LonasEdgeError, match=r"out\.training: "):
            held(WorkingDirectory.of(tmp_path / "out"), resume=resume, overwrite=not resume)
    assert (tmp_path / "out.training").read_text() == "mine"


def test_a_damaged_newer_checkpoint_is_named_and_set_aside(tmp_path: Path) -> None:
    working = directory(tmp_path, 3, 6, 7)
    (working.path / "checkpoint-6/rng_state.pth").unlink()
    (working.path / "checkpoint-7/optimizer.pt").write_bytes(b"cut off")
    with working.held(SETTINGS, resume=True, overwrite=False) as found:
        assert found.checkpoint == working.path / "checkpoint-3"
        assert found.step == 3
        assert [fault.partition(":")[0] for fault in found.damaged] == [
            "checkpoint-7/optimizer.pt",
            "checkpoint-6/rng_state.pth",
        ]
        assert (
            found.told().splitlines()[0]
            == "damaged, not used: checkpoint-7/optimizer.pt: not what was saved; its SHA-256 is another"
        )
        names = sorted(path.name for path in working.path.iterdir())
        assert names == ["checkpoint-3", "damaged-6", "damaged-7", "settings.json"]


def test_no_whole_checkpoint_is_told_and_nothing_lost(tmp_path: Path) -> None:
    working = directory(tmp_path, 3, 6)
    for name in ("checkpoint-3/scheduler.pt", "checkpoint-6/trainer_state.json"):
        (working.path / name).unlink()
    with pytest.raises(LonasEdgeError) as raised:
        held(working, resume=True)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{working.path}: no checkpoint is whole:"
    assert [line.split(":")[0] for line in lines[1:3]] == [
        "  - checkpoint-6/trainer_state.json",
        "  - checkpoint-3/scheduler.pt",
    ]
    assert lines[3] == "The training cannot be resumed. --overwrite, without --resume, starts again."
    assert sorted(path.name for path in working.path.iterdir()) == ["checkpoint-3", "checkpoint-6", "settings.json"]
    assert held(working, overwrite=True) == ["settings.json"]


def test_interrupted_again_while_it_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working = directory(tmp_path, 3, -6)
    files, times = lonas_edge.training.working.check_files, iter([True, False])

    def interrupted(checkpoint: Path) -> None:
        if next(times, False):
            raise KeyboardInterrupt
        files(checkpoint)

    with pytest.raises(LonasEdgeError, match=r"Training interrupted\. The last good checkpoint is kept: .*checkpoint-3\."):  # noqa: SIM117
        with working.kept(), working.held(SETTINGS, resume=True, overwrite=False):
            monkeypatch.setattr(lonas_edge.training.working, "check_files", interrupted)
            raise KeyboardInterrupt
    assert held(working, resume=True) == ["checkpoint-3", "settings.json"]


def test_what_is_kept_is_whole(tmp_path: Path) -> None:
    working = directory(tmp_path, 3, 6)
    with pytest.raises(LonasEdgeError, match=r"is kept: .*/checkpoint-3\."), working.held(SETTINGS, True, False):
        (working.path / "checkpoint-6/optimizer.pt").write_bytes(b"")
        raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    working = directory(tmp_path, 3)
    working.path.chmod(0o500)
    with pytest.raises(LonasEdgeError, match=r"out\.training: cannot be written"):
        held(working, overwrite=True)
    working.path.chmod(0o700)
