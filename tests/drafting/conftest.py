"""Fixtures of drafts."""

import json
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from draft_runs import TEMPLATE, Made, make_quick, write_prompts
from tiny_models import TinyModels, say_only

from lonas_edge.drafting.options import DraftOptions
from lonas_edge.drafting.run import make_draft
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source


@pytest.fixture(scope="session")
def letters(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that generates letters, and its INT8 IR. Not to be changed."""
    folder = tmp_path_factory.mktemp("letters")
    base = tiny_models.source("llama").copied_to(folder).base
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    say_only(base, string.ascii_lowercase)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    source = open_source(str(base))
    export(source, source.select("maximal"), folder / "model", ExportOptions(weight_format="int8_sym", verify=False))
    return base, folder / "model"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `make_quick`."""
    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def made(letters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A quick draft of `letters`."""
    folder = tmp_path_factory.mktemp("draft")
    data = write_prompts(folder / "chat.jsonl", 40)
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch)
        record = make_draft(DraftOptions(exported=letters[1], data=data, output=folder / "out"))
    yield Made(*letters, data, folder / "out", record)
