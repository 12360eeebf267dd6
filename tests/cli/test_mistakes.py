"""What users get wrong: exit code 1 or 2, an error that says what and where, nothing written and no traceback."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinyModels, TinySource
from train_commands import arguments, has

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture
def mistake(run_cli: Callable, tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused and must change nothing; returns the error."""

    def run(*command: object, code: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        ran = run_cli(*command)
        assert (ran.code, ran.out) == (code, ""), ran
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert "Traceback" not in ran.err and "unexpected" not in ran.err.partition("\n")[0], ran.err
        return " ".join(ran.err.split())

    return run


@pytest.fixture
def export(mistake: Callable, tmp_path: Path) -> Callable[..., str]:
    """Exports a source that must be refused."""
    fixed = ("--output", tmp_path / "new/out", "--stage", "checkpoint", "--no-verify")
    return lambda source, *options: mistake("export", *source.arguments(), *fixed, *options)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# the data

EXAMPLES = [{"instruction": f"What is {a} plus 1?", "output": str(a + 1)} for a in range(40)]
TURNS = [{"role": role, "content": "Hello."} for role in ("system", "user", "assistant")]
SHORT = ("--prompt-len", 16)


def test_missing_data(llama: TinySource, mistake: Callable, tmp_path: Path) -> None:
    has(mistake(*arguments(llama, tmp_path / "none.json", tmp_path / "out"), code=2), "none.json")


# the source


def test_no_network(mistake: Callable) -> None:
    has(mistake("inspect", "owner/no-such-model"), "owner/no-such-model: no such directory", "not available from the hub")


def test_a_gguf_file_or_an_export_as_source(llama: TinySource, exported: Path, mistake: Callable, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    has(mistake("inspect", tmp_path / "model.gguf"), "model.gguf")
    has(mistake("export", exported, "--output", tmp_path / "out"), exported, "export")


def test_adapter_of_another_base(tiny_models: TinyModels, tmp_path: Path, export: Callable) -> None:
    """Qwen3's heads make q, k, v of another size: they are listed with both shapes."""
    source = tiny_models.source("llama").copied_to(tmp_path)
    shutil.rmtree(source.adapter)
    shutil.copytree(tiny_models.adapter("qwen3"), source.adapter)
    error = export(source)
    has(error, source.adapter / ADAPTER, "does not fit the base model (llama)", "Is --model the base it was trained on?")
    has(error, "model.layers.0.self_attn.q_proj.lora_B.weight: expected [64, 8], found [96, 8]")


def test_adapter_without_weights(llama_copy: TinySource, export: Callable) -> None:
    (llama_copy.adapter / ADAPTER).unlink()
    has(export(llama_copy), llama_copy.adapter, "no adapter weights")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_weights(llama_copy: TinySource, export: Callable, value: float) -> None:
    edit_tensors(llama_copy.base / WEIGHTS, lambda tensors: tensors["model.norm.weight"].fill_(value))
    has(export(llama_copy), llama_copy.base, f"model.norm.weight: holds NaN or Inf, in {WEIGHTS}")


@pytest.mark.parametrize("share", [0, 0.999])
def test_truncated_safetensors(llama_copy: TinySource, export: Callable, share: float) -> None:
    os.truncate(llama_copy.base / WEIGHTS, int((llama_copy.base / WEIGHTS).stat().st_size * share))
    has(export(llama_copy), llama_copy.base / WEIGHTS, "truncated", "Download or copy it again")


def test_unsupported_family(llama_copy: TinySource, export: Callable) -> None:
    (llama_copy.base / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    has(export(llama_copy), llama_copy.base, "model_type 'gpt2' is not supported", "Supported: llama, mistral")


# what comes with a model is not executed, and does not lead elsewhere


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_malicious_pickle(llama_copy: TinySource, export: Callable, tmp_path: Path, where: str) -> None:
    marker, folder = tmp_path / "executed", getattr(llama_copy, where)
    safe = folder / (WEIGHTS if where == "base" else ADAPTER)
    path = folder / ("pytorch_model.bin" if where == "base" else "adapter_model.bin")
    torch.save({**load_file(safe), "bomb": Bomb(marker)}, path)
    safe.unlink()
    has(export(llama_copy), path, "could execute code", "Ask its author for safetensors")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have


def test_remote_code_does_not_run(llama_copy: TinySource, export: Callable, tmp_path: Path) -> None:
    edit(llama_copy.base / "config.json", lambda c: c.update(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}))
    (llama_copy.base / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: pass\n")
    has(export(llama_copy), llama_copy.base / "config.json")


# the search space, the sub-network, the target


@pytest.mark.parametrize("target", ["tpot", "speed<=0.7x", "tpot<=fast", "kl>=0.1"])
def test_wrong_target_expression(llama: TinySource, data: Path, mistake: Callable, tmp_path: Path, target: str) -> None:
    compress = ("compress", llama.base, *SHORT, "--data", data, "--output", tmp_path / "out")
    has(mistake(*compress, "--target", target, code=2), target)
    search = ("search", *llama.arguments(), "--data", data, "--output", tmp_path / "out")
    has(mistake(*search, "--pick", target, code=2), target)


# the output, the disk, the memory


def test_existing_output(llama: TinySource, export: Callable, tmp_path: Path) -> None:
    (tmp_path / "new/out").mkdir(parents=True)
    (tmp_path / "new/out/mine").write_text("mine")
    has(export(llama), tmp_path / "new/out", "already exists", "--overwrite")
    has(export(llama, "--overwrite"), "--overwrite replaces only outputs of lonas-edge")


def test_full_disk(llama: TinySource, export: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1000))
        has(export(llama), tmp_path / "new/out", "not enough disk space", "GB needed", "0.00 GB free", "another disk")


def test_no_memory(llama: TinySource, export: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_args: object, **_options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr("lonas_edge.exporting.export.MaterializedModel", allocate)
    has(export(llama), "error: out of memory in lonas-edge export", "--stage checkpoint or --no-verify needs less memory")
