"""Fixtures of the tests of bench."""

import shutil
from pathlib import Path

import pytest
from tiny_models import TinyModels, TinySource

from lonas_edge.exporting.export import ExportOptions, export


@pytest.fixture(scope="session")
def source(tiny_models: TinyModels) -> TinySource:
    """What `int8` was exported from."""
    return tiny_models.source("llama")


@pytest.fixture(scope="session")
def int8(source: TinySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal sub-network of the tiny LLaMA, INT8. Not to be changed."""
    folder, opened = tmp_path_factory.mktemp("bench") / "minimal-int8", source.opened()
    export(opened, opened.select("minimal"), folder, ExportOptions("int8", verify=False))
    return folder


@pytest.fixture
def copy(int8: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(int8, tmp_path / "copy"))
