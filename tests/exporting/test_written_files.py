"""Files of an output: hashes, changes, links in a base."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported

NOT_KEPT = {"README.md", "graph.pbtxt", "lonas_edge.json"}


@pytest.fixture
def folder(exports: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(exports("llama", "minimal", weight_format="fp32", verify=False), tmp_path / "copy"))


def checkpoint(source: TinySource, output: Path) -> Path:
    """Export a checkpoint, the quick way."""
    opened = source.opened()
    export(opened, opened.select("minimal"), output, ExportOptions(stage="checkpoint", verify=False))
    return output


def test_the_manifest_has_size_and_hash_of_every_file(folder: Path, llama: TinySource, tmp_path: Path) -> None:
    for output in (folder, checkpoint(llama, tmp_path / "checkpoint")):
        kept = json.loads((output / "lonas_edge.json").read_text())["files"]
        there = {path.name: path.read_bytes() for path in output.iterdir() if path.name not in NOT_KEPT}
        assert kept == {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in there.items()
        }


def inserted(content: bytes) -> bytes:
    return content[:64] + bytes(8) + content[64:]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("openvino_model.bin", inserted, r"changed: expected [\d,]+ bytes \(lonas_edge.json\), found [\d,]+"),
        ("openvino_model.bin", flipped, "changed: its SHA-256 is not the one in lonas_edge.json"),
        ("subnetwork.json", None, "missing"),
    ],
)
def test_changed_files_are_refused(folder: Path, file: str, change: Callable | None, message: str) -> None:
    open_exported(folder)
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(LonasEdgeError, match=rf"{file}: {message}"):
        open_exported(folder)


# what of a base gets into an output


def test_generation_config_is_written_again(llama_copy: TinySource, tmp_path: Path) -> None:
    (llama_copy.base / "generation_config.json").write_text('\ufeff{"eos_token_id":1,\n\n"top_k": 3}', encoding="utf-8")
    written = (checkpoint(llama_copy, tmp_path / "out") / "generation_config.json").read_text()
    assert written == '{\n  "eos_token_id": 1,\n  "top_k": 3\n}\n'


@pytest.mark.parametrize("file", ["generation_config.json", "chat_template.jinja", "tokenizer.json", "config.json"])
def test_a_link_to_a_file_of_the_system_is_not_followed(llama_copy: TinySource, tmp_path: Path, file: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"secret": 1}')
    (llama_copy.base / file).unlink(missing_ok=True)
    (llama_copy.base / file).symlink_to(secret)
    with pytest.raises(LonasEdgeError, match=rf"base: files that cannot be used:\n  - {file}: a link out of the directory"):
        checkpoint(llama_copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
