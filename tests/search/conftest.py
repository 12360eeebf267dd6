"""Fixtures of the searches."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource

from lonas_edge.search import run as run_module


@pytest.fixture
def command(llama: TinySource, data: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A search of the tiny LLaMA: `command(*options)`; 27 networks, by bytes."""

    def make(*options: object) -> list[str]:
        return [
            *("search", *llama.arguments(), "--data", data, "--output", tmp_path / "out"),
            *("--cost", "bytes", "--num-samples", "8", "--evals", "27"),
            *map(str, options),
        ]

    return make


@pytest.fixture
def refused(run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must fail before the model is loaded and change no file; return the error."""

    def run(command: list[str], code: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "load_super_network", forbidden)
            ran = run_cli(*command)
        assert ran.code == code, ran
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
        assert "Traceback" not in ran.err
        assert not ran.out
        return ran.err

    return run


def forbidden(*_arguments: object) -> None:
    """Replaces the loading of a model."""
    raise AssertionError("the model was loaded")
