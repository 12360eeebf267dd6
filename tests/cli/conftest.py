"""Fixtures of `lonas-edge train`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyModels

import lonas_edge.training.job
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.training.elastic_trainer import ElasticTrainer


@pytest.fixture
def refused(run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must fail before the model is loaded, leaving everything as it was; returns the error."""

    def run(command: list[str], code: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with monkeypatch.context() as patch:
            patch.setattr(lonas_edge.training.job, "load_model", forbidden)
            ran = run_cli(*command)
        assert ran.code == code, ran
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert "Traceback" not in ran.err
        assert not ran.out
        return ran.err

    return run


def forbidden(*_arguments: object) -> None:
    """In place of what takes long."""
    raise AssertionError("the model was loaded")


@pytest.fixture
def unfinished(run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Runs a command that is interrupted in its 6th step."""

    def run(command: list[str]) -> None:
        training_step = ElasticTrainer.training_step

        def interrupted(self: ElasticTrainer, *given: Any, **options: Any) -> Any:
            if self.state.global_step == 5:
                raise KeyboardInterrupt
            return training_step(self, *given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ElasticTrainer, "training_step", interrupted)
            ran = run_cli(*command)
        assert ran.code == 1
        assert "interrupted" in ran.err

    return run


@pytest.fixture(scope="session")
def exported(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal sub-network of the tiny LLaMA, INT8. Not to be changed."""
    folder, opened = tmp_path_factory.mktemp("cli") / "exported", tiny_models.source("llama").opened()
    export(opened, opened.select("minimal"), folder, ExportOptions(verify=False))
    return folder
