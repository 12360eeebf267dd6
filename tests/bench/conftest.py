"""Fixtures of the bench tests: a tiny exported directory, and fake processes."""

import shutil
from pathlib import Path

import pytest
from fake_variants import FakeProcess, Fakes
from tiny_models import TinyModels, TinySource

from lonas_edge.bench import latency
from lonas_edge.exporting.export import ExportOptions, export


@pytest.fixture(scope="session")
def source(tiny_models: TinyModels) -> TinySource:
    """The source of `int8`."""
    return tiny_models.source("llama")


@pytest.fixture(scope="session")
def int8(source: TinySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal sub-network of the tiny LLaMA in INT8. Read only."""
    folder, opened = tmp_path_factory.mktemp("bench") / "minimal-int8", source.opened()
    export(opened, opened.select("minimal"), folder, ExportOptions("int8", verify=False))
    return folder


@pytest.fixture
def copy(int8: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(int8, tmp_path / "copy"))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Replace the variants' processes by fakes."""
    fakes = Fakes()
    monkeypatch.setattr(latency, "VariantProcess", lambda variant, placement: FakeProcess(fakes, variant, placement))
    return fakes
