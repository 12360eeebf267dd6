"""Files of an output: hashes, changes by later commands, runtime properties, links in a base."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported, restore_properties, store_properties
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.ir.runtime import RuntimeProperties

NOT_KEPT = {"README.md", "lonas_edge.json"}
CHOSEN = RuntimeProperties(
    *("CPU", "2026-01-01", "tpot", {"KV_CACHE_PRECISION": "f16", "ENABLE_CPU_PINNING": "NO"}, {}, 0.0),
    {"machine": {"device_name": "a CPU", "threads": 1}},
)


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
            name: [{"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}] for name, content in there.items()
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
        ("openvino_model.xml", lambda content: content.replace(b"</net>", b" </net>"), "changed"),
        ("tokenizer.json", lambda content: content.replace(b"the", b"hte"), "changed"),
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


def test_runtime_properties_are_stored_and_restored(folder: Path) -> None:
    first = (folder / "openvino_model.xml").read_bytes()
    store_properties(folder, CHOSEN)
    assert (folder / "openvino_model.xml").read_bytes() != first
    assert open_exported(folder).properties == CHOSEN.properties
    restore_properties(folder)
    assert open_exported(folder).properties == {}
    (folder / "openvino_model.xml").write_bytes(first + b" ")  # neither the present nor the previous state
    with pytest.raises(LonasEdgeError, match=r"openvino_model\.xml: changed"):
        open_exported(folder)


def test_interrupted_while_properties_are_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the three files is the last that was replaced, the directory opens."""
    rename = Path.replace
    for action in (lambda: store_properties(folder, CHOSEN), lambda: restore_properties(folder)):
        for done in range(4):
            left = [done]

            def replaced(self: Path, target: Path, left: list[int] = left) -> Path:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                return rename(self, target)

            with monkeypatch.context() as patched:
                patched.setattr(Path, "replace", replaced)
                with suppress(KeyboardInterrupt):
                    action()
            assert left == [0] or done >= 2, "fewer than two files were replaced"
            open_exported(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"properties": {"CACHE_DIR": "/tmp/elsewhere"}},
            "CACHE_DIR = '/tmp/elsewhere': not read from files",
        ),
        ({"properties": {"KV_CACHE_PRECISION": "u8\n"}}, "KV_CACHE_PRECISION = .*: expected u8"),
        ({"replaced_in_ir": {"ENABLE_CPU_PINNING": "NO"}}, "ENABLE_CPU_PINNING"),
        ({"in_ir": ["CACHE_DIR"]}, "in_ir: CACHE_DIR"),
        ({"device": 'CPU", CACHE_DIR="x'}, "device: .* is not an OpenVINO device"),
        ({"conditions": {}}, "conditions.machine"),
    ],
)
def test_other_properties_are_refused(folder: Path, change: dict, message: str) -> None:
    content = replace(CHOSEN, in_ir=("KV_CACHE_PRECISION",), replaced_in_ir={"KV_CACHE_PRECISION": None}).to_json()
    content = json.loads(json.dumps(content))
    (folder / "lonas_edge_runtime.json").write_text(json.dumps(content))
    assert open_exported(folder).properties == CHOSEN.properties
    (folder / "lonas_edge_runtime.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(LonasEdgeError, match=rf"(?s)lonas_edge_runtime\.json: .*{message}"):
        open_exported(folder)


def test_other_options_in_the_ir_are_refused(folder: Path) -> None:
    """In a directory that claims to be ours."""
    replace(Manifest.read(folder / "lonas_edge.json"), files={}).write(folder / "lonas_edge.json")
    path = folder / "openvino_model.xml"
    text = path.read_text()
    assert text.count("<runtime_options>") == 1  # KV_CACHE_PRECISION
    open_exported(folder)
    path.write_text(text.replace("<runtime_options>", '<runtime_options><CACHE_DIR value="/tmp/elsewhere" />'))
    with pytest.raises(LonasEdgeError, match=r"openvino_model\.xml: CACHE_DIR = '/tmp/elsewhere': not read from files"):
        open_exported(folder)
    (folder / "lonas_edge.json").unlink()
    assert open_exported(folder, ours=False).properties == {}  # of another tool's, plugins take what they take


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
