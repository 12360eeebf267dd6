"""Opening an exported directory: which ones are refused, and with what words."""

import json
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported

DATA = '<data element_type="u8" shape="4" offset="6" size="4" />'
XML = f'<?xml version="1.0"?>\n<net><layers><layer>{DATA}</layer></layers></net>\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lonas_edge.json").write_text(json.dumps({"stage": "ir", "weight_format": "int8"}))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 288, "max_position_embeddings": 128}))
    (tmp_path / "openvino_model.xml").write_text(XML)
    (tmp_path / "openvino_model.bin").write_bytes(bytes(10))
    for name in ("openvino_tokenizer.xml", "openvino_detokenizer.xml"):
        (tmp_path / name).write_text("<net></net>")
    return tmp_path


def test_whole(folder: Path) -> None:
    found = open_exported(folder)
    assert (found.vocabulary, found.context, found.weight_format, dict(found.properties)) == (288, 128, "int8", {})


def test_not_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="no such directory"):
        open_exported(tmp_path / "none")
    (folder / "lonas_edge.json").unlink()
    with pytest.raises(LonasEdgeError, match=r"no lonas_edge\.json; expected a directory that `lonas-edge export` wrote"):
        open_exported(folder)
    assert open_exported(folder, ours=False).weight_format == "as stored"  # another tool's IR may be an arm


def test_a_checkpoint(folder: Path) -> None:
    (folder / "lonas_edge.json").write_text(json.dumps({"stage": "checkpoint"}))
    with pytest.raises(LonasEdgeError, match="a checkpoint export; an IR is needed"):
        open_exported(folder)


def test_all_that_is_missing_is_told_at_once(folder: Path) -> None:
    (folder / "openvino_model.bin").unlink()
    (folder / "openvino_tokenizer.xml").unlink()
    with pytest.raises(LonasEdgeError, match=r"(?s)openvino_model\.bin: missing.*openvino_tokenizer\.xml: missing"):
        open_exported(folder)


def test_cut_off(folder: Path) -> None:
    (folder / "openvino_model.bin").write_bytes(bytes(9))
    with pytest.raises(LonasEdgeError, match=r"openvino_model\.bin: expected at least 10 bytes, found 9"):
        open_exported(folder)
    (folder / "openvino_model.xml").write_text(XML[:-20])
    with pytest.raises(LonasEdgeError, match=r"openvino_model\.xml: cut off"):
        open_exported(folder)


def test_unreadable_manifest(folder: Path) -> None:
    (folder / "lonas_edge.json").write_text("{")
    with pytest.raises(LonasEdgeError, match=r"lonas_edge\.json: not readable as JSON"):
        open_exported(folder)
