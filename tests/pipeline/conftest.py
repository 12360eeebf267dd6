"""Fixtures of `compress`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import QUICK, Finished, make_quick, write_data
from tiny_models import TinyModels, TinySource

from lonas_edge.cli.compress import compress
from lonas_edge.errors import LonasEdgeError
from lonas_edge.pipeline import baselines, run


@pytest.fixture(scope="session", autouse=True)
def without_amx() -> Iterator[None]:
    """All machines compare with the same files."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(baselines, "instructions", list)
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """96 short examples."""
    return write_data(tmp_path / "data.json")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `make_quick`."""
    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def finished(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny LLaMA, compressed from Python."""
    folder, source = tmp_path_factory.mktemp("compress"), tiny_models.source("llama")
    write_data(folder / "data.json")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch, whole=True)
        record = compress(source.base, data=folder / "data.json", output=folder / "out", **QUICK)
    return Finished(folder, source, record)


@pytest.fixture
def refused(tmp_path: Path, data: Path, llama: TinySource, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `compress` with options that it must refuse before any step, leaving no file; returns the error."""

    def forbidden(*_given: object) -> None:
        raise AssertionError("a step was timed or run")

    def refuse(source: Path | None = None, **options: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(run, "time_steps", forbidden)
        with pytest.raises(LonasEdgeError) as caught:
            compress(source or llama.base, **{"data": data, "output": tmp_path / "out", "prompt_len": 8, **options})
        assert sorted(tmp_path.rglob("*")) == before
        return str(caught.value)

    return refuse
