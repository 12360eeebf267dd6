"""Readers of checkpoints: which files count, ranges of tensors, pickles, weights that do not match."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinySource, random_model
from transformers import AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.checkpoints import describe_damage, load_pickle, open_base, open_tensors, take

MATRIX = torch.arange(30.0).reshape(6, 5)


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_several_ranges() -> None:
    assert torch.equal(take(MATRIX, ((0, 2), (4, 6)), ((1, 2), (3, 5))), MATRIX[[0, 1, 4, 5]][:, [1, 3, 4]])
    assert torch.equal(take(MATRIX[:, 0], ((0, 2), (4, 6)), ((1, 2),)), MATRIX[[0, 1, 4, 5], 0])


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


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize(("single", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_a_single_file_is_preferred_over_shards(single: str, save: Callable, stale: bool, tmp_path: Path) -> None:
    """As transformers does: its `save_pretrained` deletes earlier shards, but not their index."""
    model, shard = random_model("llama"), single.replace(".", "-00001-of-00001.")
    model.config.save_pretrained(tmp_path)
    weights = model.state_dict()
    (tmp_path / f"{single}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, shard)}))
    save(weights, tmp_path / single)
    if not stale:
        save({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / shard)
    tensors, theirs = open_tensors(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert [path.name for path in tensors.files] == [single]
    for name in weights:
        assert torch.equal(tensors.read(name), theirs[name]) and torch.equal(theirs[name], weights[name]), name


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


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"no weights \(model.safetensors.*index.json\)$"):
        open_tensors(tmp_path)
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(LonasEdgeError, match=r"index.json\); an OpenVINO or GGUF model. Pass the model that it was made from"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "sub/one.safetensors"])
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_damaged_numbers(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max  # of fp16 it is 65504, whose square fp32 has
    assert describe_damage(torch.full((4, 4), 100.0, dtype=dtype)) is None
    message = None if dtype == torch.float16 else "holds values too large to compute with"
    assert describe_damage(torch.full((4, 4), largest, dtype=dtype)) == message
    assert describe_damage(torch.tensor([1.0, float("nan")], dtype=dtype)) == "holds NaN or Inf"
    assert describe_damage(torch.tensor([1.0, float("-inf")], dtype=dtype)) == "holds NaN or Inf"


def test_a_tied_head_that_differs_from_the_embedding(llama_copy: TinySource) -> None:
    config, weights = llama_copy.base / "config.json", llama_copy.base / "model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(LonasEdgeError, match=r"lm_head\.weight in model\.safetensors: differs from model\.embed_tokens"):
        open_base(llama_copy.base, llama_copy.opened().architecture)
    tensors = load_file(weights)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, weights)
    assert "lm_head.weight" in open_base(llama_copy.base, llama_copy.opened().architecture).shapes  # stored twice
