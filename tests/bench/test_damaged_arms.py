"""The file of an arm that is damaged is named, whatever its library says."""

import os
from pathlib import Path

import pytest
from tiny_models import TinySource

from lonas_edge.bench.arms import Arm
from lonas_edge.bench.damage import in_checkpoint, in_gguf, in_ir, reason
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("openvino_model.xml", b"<net></net>"),
        ("openvino_tokenizer.xml", b"<"),
        ("openvino_detokenizer.bin", b""),
        ("generation_config.json", b"{"),
        ("tokenizer_config.json", b"\xff"),
    ],
)
def test_of_an_ir(copy: Path, file: str, content: bytes) -> None:
    assert in_ir(Arm("subnet", "ir", copy)) is None
    (copy / file).write_bytes(content)
    found = in_ir(Arm("subnet", "ir", copy))
    assert found and "\n" not in found
    assert found.startswith(f"{copy / file.replace('.bin', '.xml')}: damaged: ")


def test_of_a_base_and_its_adapter(source: TinySource, tmp_path: Path) -> None:
    own = source.copied_to(tmp_path)
    arm = Arm("lora", "torch", own.base, adapter=own.adapter)
    assert in_checkpoint(arm) is None
    os.truncate(own.adapter / "adapter_model.safetensors", 1000)
    found = in_checkpoint(arm)
    assert found and found.startswith(f"{own.adapter}/adapter_model.safetensors: damaged: ")
    (own.base / "config.json").write_text("[")
    found = in_checkpoint(arm)
    assert found and found.startswith(f"{own.base}/config.json: damaged: ")


def test_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(20))
    found = in_gguf(Arm("gguf", "gguf", tmp_path / "a.gguf"))
    assert found and found.startswith(f"{tmp_path}/a.gguf: damaged: ")


def test_an_arm_names_it(source: TinySource, tmp_path: Path) -> None:
    own = source.copied_to(tmp_path)
    os.truncate(own.base / "model.safetensors", 1000)
    arm = Arm("lora", "torch", own.base, "cpu", "fp32", own.adapter)
    with ArmProcess(arm, Placement((0,), 1)) as process, pytest.raises(ArmFailedError) as failed:
        process.wait_loaded()
    assert str(failed.value).startswith(f"lora: {own.base}/model.safetensors: damaged: ")


def test_what_openvino_says_is_its_last_line() -> None:
    error = RuntimeError("Exception from src/core.cpp:132:\nException from src/a.cpp:5:\nNo such property\x1b\n\n")
    assert reason(error) == "No such property\\x1b"
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(ValueError()) == ""
