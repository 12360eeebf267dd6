"""Damage to tensors by name: safetensors, and the pickles of PyTorch."""

import json
import os
import pickle
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from damage import EXECUTED, MUTATORS, Damaged, NotApplicableError, mutates
from damage_json import VALUES, place_in, shown
from safetensors.torch import load_file, save_file


def _drop(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    del tensors[name]
    return "left out"


def _rename(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    new = rng.choice([f"{name}x", "", "x", name.upper(), f"module.{name}", "a" * 10_000])
    tensors[new] = tensors.pop(name)
    return f"named {new[:40]!r}"


def _extra(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    new = rng.choice(["unknown", f"{name}.weight", f"{name}_scale", "model.layers.9.mlp.up_proj.weight"])
    tensors[new] = tensors[name].clone()
    return f"beside it {new}"


def _reshape(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    old = tensors[name]
    changed = [
        old.reshape(-1),
        old[None],
        old[..., None],
        old[:0],
        old[:1],
        old[:-1],
        torch.cat([old, old]),
        old.t() if old.dim() == 2 else old[None, None],
    ]
    tensors[name] = rng.choice([one for one in changed if one.shape != old.shape]).contiguous()
    return f"of shape {list(tensors[name].shape)}"


_DTYPES = ("float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "float8_e4m3fn", "complex64", "uint16")


def _retype(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    dtype = rng.choice(_DTYPES)
    tensors[name] = tensors[name].to(getattr(torch, dtype))
    return f"as {dtype}"


def _fill(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    value = rng.choice([float("nan"), float("inf"), float("-inf"), 3e38, -1e30, 1e-45, 0.0])
    flat = tensors[name].reshape(-1).clone()
    if not flat.is_floating_point():
        raise NotApplicableError
    place = rng.choice([0, len(flat) - 1, rng.randrange(len(flat)), slice(None)])
    flat[place] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    return f"{value} at {place}"


def _scale(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    factor = rng.choice([2, -1, 1.0001, 1000])
    tensors[name] = (tensors[name] * factor).to(tensors[name].dtype)
    return f"times {factor}"


def _swap(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    others = {other: value for other, value in tensors.items() if other != name and isinstance(value, torch.Tensor)}
    alike = [other for other, value in others.items() if value.shape == tensors[name].shape]
    if not alike:
        raise NotApplicableError
    other = rng.choice(alike)
    tensors[name], tensors[other] = tensors[other], tensors[name]
    return f"in the place of {other}"


def _renumber(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    """Another channel order: places of integers changed."""
    value = tensors[name].clone()
    if value.is_floating_point() or value.dim() != 1 or len(value) < 2:
        raise NotApplicableError
    one, other = rng.sample(range(len(value)), 2)
    new = rng.choice([int(value[other]), -1, len(value), 2**40])
    if rng.random() < 0.3:
        value[one], value[other] = value[other].clone(), value[one].clone()
        told = f"places {one} and {other} exchanged"
    else:
        value[one] = new
        told = f"place {one} is {new}"
    tensors[name] = value
    return told


_TENSOR_CHANGES = (_drop, _rename, _extra, _reshape, _retype, _fill, _scale, _swap, _renumber)


def _change_tensors(tensors: dict[Any, Any], rng: random.Random) -> str:
    named = [name for name, value in tensors.items() if isinstance(value, torch.Tensor) and value.numel()]
    if not named:
        raise NotApplicableError
    name, change = rng.choice(named), rng.choice(_TENSOR_CHANGES)
    return f"{name}: {change(tensors, name, rng)}"


@mutates("safetensors")
def a_tensor_changed(at: Damaged) -> str:
    tensors = load_file(at.path)
    told = _change_tensors(tensors, at.rng)
    save_file({name: value.clone() for name, value in tensors.items()}, at.path, metadata={"format": "pt"})
    return told


MUTATORS["safetensors"] += [a_tensor_changed] * 4


@mutates("safetensors")
def its_header_changed(at: Damaged) -> str:
    """The header as JSON: other offsets, shapes, dtypes; or its length."""
    raw = at.path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    kind = at.rng.choice(["length", "value", "nested", "field"])
    if kind == "length":
        wrong = at.rng.choice([0, 1, size - 1, size + 1, 2**63, 2**64 - 1, len(raw)])
        at.path.write_bytes(struct.pack("<Q", wrong) + raw[8:])
        return f"header length {size} became {wrong}"
    if kind == "nested":
        text = b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        at.path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return "a header nested 100,000 deep"
    container, key, way = place_in(header, at.rng)
    if kind == "value":
        container[key] = at.rng.choice([v for v in VALUES if v != "\ud800"])
        told = f"header {way} = {shown(container[key])}"
    else:
        del container[key]
        told = f"header {way} left out"
    text = json.dumps(header).encode()
    at.path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return told


class Bomb:
    """Unpickling it creates a directory."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def _load_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


@mutates("pickle")
def an_entry_changed(at: Damaged) -> str:
    content = _load_pickle(at.path)
    if not isinstance(content, dict):
        raise NotApplicableError
    flat = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if flat:
        told = _change_tensors(content, at.rng)
    else:
        container, key, way = place_in(content, at.rng)
        value = at.rng.choice(VALUES)
        if at.rng.random() < 0.4:
            del container[key]
            told = f"{way} left out"
        else:
            container[key] = value
            told = f"{way} = {shown(value)}"
    torch.save(content, at.path)
    return told


MUTATORS["pickle"] += [an_entry_changed] * 2


@mutates("pickle")
def odd_content(at: Damaged) -> str:
    warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
    content = _load_pickle(at.path)
    if not isinstance(content, dict):
        raise NotApplicableError
    some = torch.ones(3, 3)
    name = at.rng.choice(list(content))
    odd: list[tuple[str, Any]] = [
        ("a whole number", 5),
        ("None", None),
        ("a list of tensors", [some]),
        ("a sparse tensor", some.to_sparse()),
        ("a quantized tensor", torch.quantize_per_tensor(some, 0.1, 0, torch.qint8)),
        ("a tensor of the meta device", some.to("meta")),
        ("a tensor within a dictionary", {"a": some}),
        ("a tensor that wants a gradient", torch.nn.Parameter(some)),
    ]
    told, value = at.rng.choice(odd)
    if at.rng.random() < 0.3:
        key = at.rng.choice([5, None, ("a", 1), b"bytes", 1.5])
        content[key], told = some, f"a key {key!r}"
    else:
        content[name] = value
    torch.save(content, at.path)
    return f"{name}: {told}"


@mutates("pickle")
def another_pickle(at: Damaged) -> str:
    content = _load_pickle(at.path)
    kind = at.rng.choice(["executes", "list", "plain pickle", "old format", "state_dict within"])
    if kind == "executes":
        torch.save({"a": torch.ones(1), "bomb": Bomb(EXECUTED)}, at.path)
    elif kind == "list":
        torch.save([1, 2, 3], at.path)
    elif kind == "plain pickle":
        at.path.write_bytes(pickle.dumps({"a": Bomb(EXECUTED)}))
    elif kind == "old format":
        torch.save(content, at.path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": content, "epoch": 3}, at.path)
    return kind
