"""Readers that execute nothing, and output directories that appear whole or not at all."""

import fcntl
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_json, sha256
from lonas_edge.network.checkpoints import TensorFiles, load_pickle, open_base, open_tensors
from lonas_edge.output import OutputDirectory


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def test_reads_the_rows_and_columns_asked_for(tmp_path: Path) -> None:
    matrix, vector = torch.randn(6, 5), torch.randn(6).to(torch.bfloat16)
    save_file({"matrix": matrix, "vector": vector}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    assert tensors.shapes == {"matrix": (6, 5), "vector": (6,)}
    assert tensors.dtypes == {"matrix": "float32", "vector": "bfloat16"}
    assert torch.equal(tensors.read("matrix"), matrix)
    assert torch.equal(tensors.read("matrix", ((0, 2),), ((0, 3),)), matrix[:2, :3])
    assert torch.equal(tensors.read("vector", ((0, 4),), ((0, 1),)), vector[:4])


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_of_tensors(tmp_path: Path, legacy: bool) -> None:
    matrix = torch.randn(6, 5)
    torch.save({"matrix": matrix}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    tensors = open_tensors(tmp_path)
    assert tensors.dtypes == {"matrix": "float32"}
    assert torch.equal(tensors.read("matrix", ((0, 2),), ((0, 3),)), matrix[:2, :3])


def test_sharded_pickles_and_safetensors_preferred(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "one.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert open_tensors(tmp_path).shapes == {"a": (2,), "b": (3,)}
    save_file({"c": torch.ones(4)}, tmp_path / "model.safetensors")
    assert open_tensors(tmp_path).shapes == {"c": (4,)}


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "pytorch_model.bin", tmp_path / "executed"
    content = {"weight": torch.ones(2), "bomb": Bomb(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for read in (lambda: load_pickle(path), lambda: load_pickle(path, mmap=True), lambda: open_tensors(tmp_path)):
        with pytest.raises(LonasEdgeError, match=r"pytorch_model\.bin"):
            read()
    assert not marker.exists()
    torch.save({"weight": torch.ones(2)}, path)
    assert torch.equal(load_pickle(path)["weight"], torch.ones(2))


@pytest.mark.parametrize("content", [[torch.ones(2)], {"step": 3}])
def test_pickles_of_something_else(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "adapter_model.bin")
    with pytest.raises(LonasEdgeError, match="expected tensors by name"):
        load_pickle(tmp_path / "adapter_model.bin")


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"no weights \(model.safetensors"):
        open_tensors(tmp_path)


def test_index_without_a_tensor_that_it_names(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LonasEdgeError, match=r"one\.safetensors: tensor b is missing"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_broken_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(LonasEdgeError, match=r"model\.safetensors\.index\.json"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/one.safetensors", ".."])
def test_index_that_leaves_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "outside.safetensors", folder / "sub/one.safetensors"):
        save_file({"a": torch.ones(2)}, path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name, "b": "gone.safetensors"}}))
    with pytest.raises(LonasEdgeError) as caught:
        open_tensors(folder)
    assert f"{name}: lies outside" in str(caught.value)
    assert "gone.safetensors: does not exist" in str(caught.value)


def test_base_is_compared_with_its_configuration(llama_copy: TinySource) -> None:
    path = llama_copy.base / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(64, 64)
    tensors["model.layers.1.self_attn.k_proj.bias"] = torch.zeros(32)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(128, 64, dtype=torch.int8)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # older transformers wrote it
    save_file(tensors, path)
    architecture = llama_copy.opened().architecture
    with pytest.raises(LonasEdgeError) as caught:
        open_base(llama_copy.base, architecture)
    for text in (
        "model.norm.weight: missing; expected [64]",
        "model.layers.1.self_attn.k_proj.weight: expected [32, 64] from config.json, found [64, 64]",
        "model.layers.1.self_attn.k_proj.bias: unknown to llama; found [32]",
        "model.layers.2.mlp.up_proj.weight: dtype",
    ):
        assert text in str(caught.value)
    assert "inv_freq" not in str(caught.value)


def test_read_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(LonasEdgeError, match="expected a JSON object, found list"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff{")
    with pytest.raises(LonasEdgeError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_no_tensor_file_at_all() -> None:
    assert TensorFiles({}).scan() == []


# output directories


def test_output_appears_whole(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "deep/er/out")
    output.check(0)
    with output.open() as folder:
        assert folder.parent == output.path.parent  # a sibling: the rename stays on one disk
        (folder / "file").write_text("new")
        assert not output.path.exists()
    assert names(output.path) == ["file"]
    assert names(output.path.parent) == ["out"]
    assert output.path.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    """The process's umask."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_existing_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(LonasEdgeError, match=r"exists and is kept as it is.*--overwrite"):
        OutputDirectory(tmp_path / "out").check(0)
    assert (tmp_path / "out/mine").read_text() == "mine"


def test_overwrite_replaces_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    output = OutputDirectory(tmp_path / "out", overwrite=True)
    output.check(0)
    with output.open() as folder:
        (folder / "file").write_text("new")
        assert (tmp_path / "out/mine").read_text() == "mine"  # until the very end
    assert names(tmp_path / "out") == ["file"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fault", [LonasEdgeError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, fault: BaseException, overwrite: bool) -> None:
    if overwrite:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("mine")

    def run() -> None:
        with OutputDirectory(tmp_path / "out", overwrite).open() as folder:
            (folder / "file").write_text("half")
            raise fault

    with pytest.raises(LonasEdgeError if isinstance(fault, OSError) else type(fault)):
        run()
    assert names(tmp_path) == (["out"] if overwrite else [])
    if overwrite:
        assert (tmp_path / "out/mine").read_text() == "mine"


def test_failure_removes_the_parents_it_made(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError), OutputDirectory(tmp_path / "deep/er/out").open():
        raise LonasEdgeError("no")
    assert names(tmp_path) == []


def test_failing_rename_restores_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".incomplete"):
            raise OSError("disk gone")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(LonasEdgeError, match="nothing was changed"), OutputDirectory(tmp_path / "out", True).open():
        pass
    assert (tmp_path / "out/mine").read_text() == "mine"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_leftovers_of_dead_runs_are_removed_and_live_ones_kept(tmp_path: Path, name: str) -> None:
    dead, live, other = (tmp_path / f".{who}.incomplete" for who in (f"{name}.dead", f"{name}.live", "another.dead"))
    for folder in (dead, live, other):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    # the lock must be another process's, as flock of the same one would not tell
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, live], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with OutputDirectory(tmp_path / name).open() as folder:
            (folder / "file").write_text("new")
        assert names(tmp_path) == sorted([live.name, other.name, name])
        assert names(live) == ["model.safetensors"]
    finally:
        holder.communicate()
    with OutputDirectory(tmp_path / name, overwrite=True).open():
        pass
    assert names(tmp_path) == sorted([other.name, name])


def test_the_writer_holds_its_lock(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out").open() as folder:
        handle = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)


def test_output_of_a_run_killed_between_the_renames_is_restored(tmp_path: Path) -> None:
    """Killed after the old output was set aside, and before the new one took its place: the next run finds the old one."""
    aside = tmp_path / ".out.abc.old"
    (aside / "kept").mkdir(parents=True)
    (aside / "kept/mine").write_text("mine")
    with pytest.raises(LonasEdgeError, match="exists and is kept"):
        OutputDirectory(tmp_path / "out").check(0)
    assert (tmp_path / "out/mine").read_text() == "mine"
    assert names(tmp_path) == ["out"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 999))
    with pytest.raises(LonasEdgeError, match=r"not enough room: 0\.50 GB needed, 0.00 GB free"):
        OutputDirectory(tmp_path / "a/b/out").check(500_000_000)
    OutputDirectory(tmp_path / "a/b/out").check(999)
    assert names(tmp_path) == []


def test_read_only_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere: ask as if not
        monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(LonasEdgeError, match="cannot be written to"):
        OutputDirectory(tmp_path / "new/out").check(0)


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LonasEdgeError, match="file"):
        OutputDirectory(tmp_path / "file/out").check(0)
    assert (tmp_path / "file").read_text() == "mine"
