"""Bad input, through the real command line: exit code 1, an error that says what and where, and nothing written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from systems import KILL, SIGNALS, may_write_anywhere
from tiny_models import TinyModels, TinySource

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def refused(run_cli: Callable, tmp_path: Path) -> Callable[..., str]:
    """Exports a damaged source, checks exit code 1 and that nothing was written, and returns the error."""

    def export(source: TinySource, *options: object, code: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        arguments = [*source.arguments(), "--output", tmp_path / "new/out", "--stage", "checkpoint", "--no-verify"]
        ran = run_cli("export", *arguments, *options)
        assert ran.code == code, ran
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert "Traceback" not in ran.err
        assert not ran.out
        return ran.err

    return export


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


def elastic(content: dict[str, Any]) -> dict[str, Any]:
    """The width section of an NNCF configuration."""
    return content["bootstrapNAS"]["training"]["elasticity"]["width"]


def has(error: str, *texts: object) -> None:
    """Every text occurs in the error."""
    for text in texts:
        assert str(text) in error, f"{text!r} is not in:\n{error}"


# the search space


def test_not_json(llama_copy: TinySource, refused: Callable) -> None:
    llama_copy.space.write_text("{'bootstrapNAS': ")
    has(refused(llama_copy), llama_copy.space, "pyjson5 cannot read it")


def test_no_bootstrapnas_section(llama_copy: TinySource, refused: Callable) -> None:
    llama_copy.space.write_text('{"input_info": {}}')
    has(refused(llama_copy), llama_copy.space, "bootstrapNAS: Field required", "expected an NNCF configuration")


def test_unknown_node(llama_copy: TinySource, refused: Callable) -> None:
    def change(content: dict[str, Any]) -> None:
        nodes = elastic(content)["overwrite_groups"][4]
        nodes[0] = nodes[0].replace("DecoderLayer[1]", "DecoderLayer[11]")

    edit(llama_copy.space, change)
    has(refused(llama_copy), llama_copy.space, "group 4", "unknown node", "DecoderLayer[11]", "decoder layers 0 to 2")


def test_width_larger_than_the_layer(llama_copy: TinySource, refused: Callable) -> None:
    edit(llama_copy.space, lambda content: elastic(content)["overwrite_groups_widths"][3].insert(0, 130))
    error = refused(llama_copy)
    has(error, llama_copy.space, "group 3", "width 130", "model.layers.0.mlp.gate_proj", "larger than the full width 128")


def test_elastic_attention_widths(llama_copy: TinySource, refused: Callable) -> None:
    def change(content: dict[str, Any]) -> None:
        group = elastic(content)["overwrite_groups"][0]
        group[:] = [group[0].replace("ModuleDict[lora_A]/NNCFLinear[default]", "NNCFUserSelfLinear[self_linear]")]
        elastic(content)["overwrite_groups_widths"][0] = [64, 40]

    edit(llama_copy.space, change)
    error = refused(llama_copy)
    has(error, llama_copy.space, "group 0", "model.layers.0.self_attn.q_proj is elastic without self_attn.k_proj")
    has(error, "width 40 of model.layers.0.self_attn.q_proj splits heads of 16 channels")


# the sub-network


@pytest.mark.parametrize(
    ("widths", "texts"),
    [
        ([8, 8], ["2 widths", "9 groups"]),
        ([8, 7, 8, 96, 96, 95, 8, 8, 8], ["layers.1.self_attn.rank: 7 is not one of [8, 6]", "layers.2.mlp.width: 95 is"]),
    ],
)
def test_subnetwork_that_does_not_fit(llama_copy: TinySource, refused: Callable, tmp_path: Path, widths, texts) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"widths": widths}))
    has(refused(llama_copy, "--subnet", path), path, *texts)


def test_no_such_subnetwork(llama_copy: TinySource, refused: Callable) -> None:
    has(refused(llama_copy, "--subnet", "largest"), "'largest'", "heuristic, maximal, minimal, random:SEED")


# the adapter


def test_adapter_for_another_base(tiny_models: TinyModels, tmp_path: Path, refused: Callable) -> None:
    """Qwen3's heads make q, k, v of another size: all of them are listed, with both shapes."""
    source = tiny_models.source("llama").copied_to(tmp_path)
    shutil.rmtree(source.adapter)
    shutil.copytree(tiny_models.adapter("qwen3"), source.adapter)
    error = refused(source)
    has(error, source.adapter / ADAPTER, "does not fit the base model (llama)", "Is --model the base it was trained on?")
    for layer in range(3):
        for name, rows, found in (("q", 64, 96), ("k", 32, 48), ("v", 32, 48)):
            key = f"model.layers.{layer}.self_attn.{name}_proj.lora_B.weight"
            has(error, f"{key}: expected [{rows}, 8], found [{found}, 8]")


def test_missing_and_extra_adapter_keys(llama_copy: TinySource, refused: Callable) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
        tensors["base_model.model.model.layers.3.mlp.up_proj.lora_B.weight"] = torch.ones(128, 8)

    edit_tensors(llama_copy.adapter / ADAPTER, change)
    error = refused(llama_copy)
    has(error, llama_copy.adapter / ADAPTER, "model.layers.1.mlp.up_proj.lora_B.weight: missing; expected [128, 8]")
    has(error, "model.layers.3.mlp.up_proj.lora_B.weight: unexpected", "found [128, 8]")


def test_not_finite_adapter(llama_copy: TinySource, refused: Callable) -> None:
    key = "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"
    edit_tensors(llama_copy.adapter / ADAPTER, lambda tensors: tensors[key][0].fill_(float("inf")))
    has(refused(llama_copy), llama_copy.adapter / ADAPTER, "model.layers.2.mlp.down_proj.lora_A.weight: holds NaN or Inf")


def test_adapter_without_weights(llama_copy: TinySource, refused: Callable) -> None:
    (llama_copy.adapter / ADAPTER).unlink()
    has(refused(llama_copy), llama_copy.adapter, "no adapter weights")


def test_dora(tiny_models: TinyModels, tmp_path: Path, refused: Callable) -> None:
    source = tiny_models.source("llama", use_dora=True).copied_to(tmp_path)
    has(refused(source), source.adapter / "adapter_config.json", "use_dora = True", "Merge it with PEFT first")


# the base


def test_numbers_that_fp32_cannot_compute_with(llama_copy: TinySource, refused: Callable) -> None:
    """They are finite, and so is all of float64's arithmetic, which the verification uses."""
    key = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    edit_tensors(llama_copy.adapter / ADAPTER, lambda tensors: tensors[key][0].fill_(3e38))
    has(refused(llama_copy), llama_copy.adapter / ADAPTER, "down_proj.lora_B.weight: holds values too large to compute with")
    other = key.replace("lora_B", "lora_A")
    edit_tensors(llama_copy.adapter / ADAPTER, lambda tensors: [tensors[name].fill_(1e12) for name in (key, other)])
    has(refused(llama_copy), "down_proj.weight: holds values too large to compute with, after merging", llama_copy.adapter)
    edit_tensors(llama_copy.adapter / ADAPTER, lambda tensors: [tensors[name].fill_(0) for name in (key, other)])
    edit_tensors(llama_copy.base / WEIGHTS, lambda tensors: tensors["model.layers.1.self_attn.v_proj.weight"][0, 0].fill_(3e38))
    has(refused(llama_copy), llama_copy.base, f"v_proj.weight: holds values too large to compute with, in {WEIGHTS}")


@pytest.mark.parametrize(("name", "value"), [("model.norm.weight", float("nan")), ("model.embed_tokens.weight", float("-inf"))])
def test_not_finite_base(llama_copy: TinySource, refused: Callable, name: str, value: float) -> None:
    edit_tensors(llama_copy.base / WEIGHTS, lambda tensors: tensors[name][..., 0].fill_(value))
    has(refused(llama_copy), llama_copy.base, f"{name}: holds NaN or Inf, in {WEIGHTS}", "Download or train them again")


@pytest.mark.parametrize("share", [0, 0.999])
def test_truncated_base(llama_copy: TinySource, refused: Callable, share: float) -> None:
    os.truncate(llama_copy.base / WEIGHTS, int((llama_copy.base / WEIGHTS).stat().st_size * share))
    has(refused(llama_copy), llama_copy.base / WEIGHTS, "truncated", "Download or copy it again")


def test_truncated_shard(tiny_models: TinyModels, tmp_path: Path, refused: Callable) -> None:
    source = tiny_models.source("llama", sharded=True).copied_to(tmp_path)
    shard = sorted(source.base.glob("*.safetensors"))[2]
    os.truncate(shard, shard.stat().st_size - 1)
    has(refused(source), shard, "truncated")


def test_index_that_names_a_missing_file(tiny_models: TinyModels, tmp_path: Path, refused: Callable) -> None:
    source = tiny_models.source("llama", sharded=True).copied_to(tmp_path)
    shard = sorted(source.base.glob("*.safetensors"))[1]
    shard.unlink()
    has(refused(source), source.base / INDEX, f"{shard.name}: does not exist", "Download the checkpoint again")


@pytest.mark.parametrize("absolute", [False, True])
def test_index_that_leaves_its_folder(tiny_models: TinyModels, tmp_path: Path, refused: Callable, absolute: bool) -> None:
    source = tiny_models.source("llama", sharded=True).copied_to(tmp_path)
    shard = sorted(source.base.glob("*.safetensors"))[1]
    moved = shard.rename(tmp_path / shard.name)
    name = str(moved) if absolute else f"../{shard.name}"

    def change(content: dict[str, Any]) -> None:
        content["weight_map"] = {k: name if file == shard.name else file for k, file in content["weight_map"].items()}

    edit(source.base / INDEX, change)
    has(refused(source), source.base / INDEX, f"{name}: lies outside the checkpoint's folder")


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_malicious_pickle(llama_copy: TinySource, refused: Callable, tmp_path: Path, where: str) -> None:
    marker = tmp_path / "executed"
    folder = getattr(llama_copy, where)
    safe = folder / (WEIGHTS if where == "base" else ADAPTER)
    tensors = {**load_file(safe), "bomb": Bomb(marker)}
    path = folder / ("pytorch_model.bin" if where == "base" else "adapter_model.bin")
    torch.save(tensors, path)
    safe.unlink()
    has(refused(llama_copy), path, "could execute code", "Ask its author for safetensors")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it would have


def test_unsupported_family(llama_copy: TinySource, refused: Callable) -> None:
    (llama_copy.base / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    has(refused(llama_copy), llama_copy.base, "model_type 'gpt2' is not supported", "Supported: llama, mistral")


def test_remote_code_does_not_run(llama_copy: TinySource, refused: Callable, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    edit(llama_copy.base / "config.json", lambda c: c.update(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}))
    (llama_copy.base / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    has(refused(llama_copy), llama_copy.base / "config.json")
    assert not marker.exists()


def test_remote_code_of_a_tokenizer_does_not_run(llama_copy: TinySource, run_cli: Callable, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    edit(
        llama_copy.base / "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}),
    )
    (llama_copy.base / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    arguments = [*llama_copy.arguments(), "--output", tmp_path / "out", "--stage", "checkpoint", "--no-verify"]
    ran = run_cli("export", *arguments)
    assert "[y/N]" not in ran.out + ran.err  # nor does it ask
    assert not marker.exists()


def test_base_that_does_not_match_its_configuration(llama_copy: TinySource, refused: Callable) -> None:
    edit(llama_copy.base / "config.json", lambda content: content.update(num_key_value_heads=4))
    error = refused(llama_copy)
    has(error, llama_copy.base, "does not match its config.json")
    for layer in range(3):
        has(error, f"model.layers.{layer}.self_attn.k_proj.weight: expected [64, 64] from config.json, found [32, 64]")


@pytest.mark.parametrize("name", ["base/config.json", "adapter/adapter_config.json"])
def test_a_byte_order_mark_where_libraries_read_none(llama_copy: TinySource, refused: Callable, name: str) -> None:
    path = llama_copy.base.parent / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    has(refused(llama_copy), path.parent, f"{path.name}: starts with a byte order mark")


# the output


def test_existing_output(llama_copy: TinySource, refused: Callable, tmp_path: Path) -> None:
    (tmp_path / "new/out").mkdir(parents=True)
    (tmp_path / "new/out/mine").write_text("mine")
    has(refused(llama_copy), tmp_path / "new/out", "already exists", "--overwrite")


def test_overwrite_keeps_the_old_output_when_it_fails(llama_copy: TinySource, run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "new/out").mkdir(parents=True)
    for name in ("mine", "lonas_edge.json"):
        (tmp_path / "new/out" / name).write_text("mine")
    edit_tensors(llama_copy.base / WEIGHTS, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))
    arguments = [*llama_copy.arguments(), "--output", tmp_path / "new/out", "--stage", "checkpoint", "--overwrite"]
    ran = run_cli("export", *arguments)
    assert ran.code == 1
    has(ran.err, "model.norm.weight: holds NaN or Inf")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert (tmp_path / "new/out/mine").read_text() == "mine"


@pytest.mark.parametrize("stage", ["checkpoint", "ir"])
def test_full_disk(llama_copy: TinySource, refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    forbid_the_long_part(monkeypatch)
    error = refused(llama_copy, "--stage", stage)
    has(error, tmp_path / "new/out", "not enough disk space", "GB needed", "0.00 GB free", "another disk")


def test_read_only_output(llama_copy: TinySource, refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if may_write_anywhere():  # root may write anywhere: ask as if not
        monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    else:
        tmp_path.chmod(0o500)
    forbid_the_long_part(monkeypatch)
    has(refused(llama_copy), tmp_path / "new/out", f"{tmp_path} is not a writable directory", "--output")


def test_disk_that_fills_up_while_writing(llama_copy: TinySource, refused: Callable, tmp_path, monkeypatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lonas_edge.network.checkpoints.save_file", full)
    has(refused(llama_copy), tmp_path / "new/out", "the disk is full; nothing was changed")


def forbid_the_long_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long must not be reached."""

    def reached(*_args: object) -> None:
        raise AssertionError("weights were opened")

    monkeypatch.setattr("lonas_edge.exporting.export.MaterializedModel", reached)


# killed runs

STALLED = """
import sys, time
from lonas_edge.network.materialize import MaterializedModel
tensor = MaterializedModel.tensor
count = 0

def stall(self, name):  # the real command, stopped in the middle of its long part
    global count
    count += 1
    if count == 5:
        print("in the middle", flush=True)
        time.sleep(600)
    return tensor(self, name)

MaterializedModel.tensor = stall
from lonas_edge.cli import main
main()
"""


@SIGNALS
@pytest.mark.slow
@pytest.mark.parametrize(("number", "existing"), [pytest.param(signal.SIGINT, False, marks=pytest.mark.slow), (KILL, True)])
def test_killed_in_the_middle(
    run_cli: Callable, llama: TinySource, tmp_path: Path, number: signal.Signals, existing: bool
) -> None:
    output = tmp_path / "out"
    arguments = ["export", *llama.arguments(), "--output", str(output), "--stage", "checkpoint", "--no-verify"]
    if existing:
        output.mkdir()
        for name in ("mine", "lonas_edge.json"):
            (output / name).write_text("mine")
        arguments.append("--overwrite")
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else -number)
    assert output.exists() == existing
    if existing:
        assert {path.name: path.read_text() for path in output.iterdir()} == {"mine": "mine", "lonas_edge.json": "mine"}
    finished = [path.name for path in tmp_path.iterdir() if not path.name.endswith((".partial", ".lock"))]
    assert finished == (["out"] if existing else [])
    if number == signal.SIGINT:
        assert error.endswith("interrupted: nothing was written\n")
        assert "Traceback" not in error
        assert list(tmp_path.iterdir()) == ([output] if existing else [])
    ran = run_cli(*arguments)
    assert ran.code == 0, ran.err
    assert list(tmp_path.iterdir()) == [output]  # and what the killed run had left is gone
    assert (output / "lonas_edge.json").exists()
    assert not (output / "mine").exists()
