"""Invalid input of `lonas-edge search` is reported before the model is loaded; nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinyModels


def has(error: str, *texts: object) -> None:
    """Every text is in the error, ignoring line breaks."""
    for text in texts:
        assert str(text) in " ".join(error.split()), f"{text!r} is not in:\n{error}"


def test_no_search_space(tiny_models: TinyModels, data: Path, refused: Callable, tmp_path: Path) -> None:
    """The error shows the command that creates a space."""
    source = tiny_models.source("llama")
    command = ["search", str(source.adapter), "--model", str(source.base), "--data", str(data), "--output", str(tmp_path / "o")]
    created = f"lonas-edge space --adapter {source.adapter}"
    has(refused(command), "no search space", created, "--nncf-config")


def test_unusable_data(command: Callable, data: Path, refused: Callable, tmp_path: Path) -> None:
    has(refused(command("--num-samples", 41)), data, "40", "41", "use fewer prompts")
    data.write_text(json.dumps([{"instruction": "a", "output": ""}, {"instruction": "b", "output": ""}]))
    has(refused(command()), data, "'output' is empty in each of its 2 examples")


def test_a_storage_that_cannot_be_reached(command: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lonas_edge.search.study._TABLES_SECONDS", 0)
    has(refused(command("--storage", "sqlite:////nowhere/at/all.db")), "--storage: cannot connect", "unable to open")
    has(refused(command("--storage", "nonsense")), "--storage: cannot connect", "postgresql+psycopg://")
    assert "secret" not in refused(command("--storage", "postgresql+nodriver://user:secret@localhost:1/db"))


def test_another_search_is_there(run_cli: Callable, command: Callable, refused: Callable, tmp_path: Path) -> None:
    """In the output directory, or in the study of a shared storage."""
    few, options = ["--evals", "3"], ["--quality", "loss", "--weight-format", "int4"]
    differences = ("quality: was kl, is loss", "weight_format: was int8_sym, is int4")
    shared = ["--storage", f"sqlite:///{tmp_path}/study.db", "--study", "mine"]
    assert run_cli(*command(*few, *shared)).code == 0
    has(refused(command(*options, *few)), tmp_path / "out", "another search", *differences, "--overwrite")
    error = refused(command(*options, *few, *shared, "--output", tmp_path / "other"))
    has(error, "--storage", "'mine' belongs to another search", *differences)


def test_a_pick_that_no_network_can_meet(command: Callable, refused: Callable) -> None:
    has(refused(command("--pick", "bytes<=10")), "bytes<=10: the smallest network has bytes", "Relax the bound")
    has(refused(command("--pick", "macs<=0.1x")), "the smallest network has macs 0.", "x.")


def test_a_pick_that_no_network_met(run_cli: Callable, command: Callable, tmp_path: Path) -> None:
    """The output is written before the error."""
    ran = run_cli(*command("--evals", "3", "--quality", "loss", "--pick", "loss<=1e-9"))
    assert ran.code == 1 and not ran.out and (tmp_path / "out/search.json").exists(), ran.err
    has(ran.err, "No network meets loss<=1e-9; the closest is", "Relax the bound or raise --evals")
    has(run_cli(*command("--pick", "accuracy<=1")).err, "accuracy is not measured here")


def test_options_without_effect(command: Callable, refused: Callable) -> None:
    has(refused(command("--prompt-len", "8"), code=2), "--prompt-len has no effect: nothing is timed")
    has(refused(command("--overwrite", "--storage", "sqlite:///x.db"), code=2), "--study NAME")
