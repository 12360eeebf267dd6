"""Mutations of tensors by name: safetensors, and PyTorch pickles."""

import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import torch
from mutate_json import VALUES, draw_key, shown
from mutation import EXECUTED, NotApplicableError, Target, mutates
from safetensors.torch import load_file, save_file

_DTYPES = ("float64", "float16", "bfloat16", "int64", "int8", "bool", "float8_e4m3fn", "complex64", "uint16")


def _rename(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    """Remove, rename or copy."""
    new = rng.choice([None, f"{name}x", "", "x", name.upper(), f"module.{name}", "a" * 10_000])
    tensor = tensors[name] if rng.random() < 0.4 else tensors.pop(name)
    if new is not None:
        tensors[new] = tensor.clone()
    return f"named {str(new)[:40]!r}"


def _reshape(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    old = tensors[name]
    changed = [old.reshape(-1), old[None], old[..., None], old[:0], old[:1], old[:-1], torch.cat([old, old])]
    changed += [old.t()] if old.dim() == 2 else []
    tensors[name] = rng.choice([tensor for tensor in changed if tensor.shape != old.shape]).contiguous()
    return f"of shape {list(tensors[name].shape)}"


def _retype(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    dtype = rng.choice(_DTYPES)
    tensors[name] = tensors[name].to(getattr(torch, dtype))
    return f"as {dtype}"


def _fill(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    value = rng.choice([float("nan"), float("inf"), float("-inf"), 3e38, -1e30, 1e-45, 0.0])
    flat = tensors[name].reshape(-1).clone()
    if not flat.is_floating_point():
        raise NotApplicableError
    index = rng.choice([0, len(flat) - 1, rng.randrange(len(flat)), slice(None)])
    flat[index] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    return f"{value} at {index}"


def _scale(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    factor = rng.choice([2, -1, 1.0001, 1000])
    tensors[name] = (tensors[name] * factor).to(tensors[name].dtype)
    return f"times {factor}"


def _swap(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    others = [key for key, value in tensors.items() if key != name and getattr(value, "shape", None) == tensors[name].shape]
    if not others:
        raise NotApplicableError
    other = rng.choice(others)
    tensors[name], tensors[other] = tensors[other], tensors[name]
    return f"swapped with {other}"


def _renumber(tensors: dict[Any, Any], name: str, rng: random.Random) -> str:
    """Another channel order: integers swapped or changed."""
    value = tensors[name].clone()
    if value.is_floating_point() or value.dim() != 1 or len(value) < 2:
        raise NotApplicableError
    first, second = rng.sample(range(len(value)), 2)
    if rng.random() < 0.3:
        value[first], value[second] = value[second].clone(), value[first].clone()
    else:
        value[first] = rng.choice([int(value[second]), -1, len(value), 2**40])
    tensors[name] = value
    return f"positions {first} and {second}: {int(value[first])}, {int(value[second])}"


_CHANGES = (_rename, _rename, _reshape, _retype, _fill, _scale, _swap, _renumber)


def _change(tensors: dict[Any, Any], rng: random.Random) -> str:
    names = [name for name, value in tensors.items() if isinstance(value, torch.Tensor) and value.numel()]
    if not names:
        raise NotApplicableError
    name, change = rng.choice(names), rng.choice(_CHANGES)
    return f"{name}: {change(tensors, name, rng)}"


@mutates("safetensors", times=5)
def tensor_changed(target: Target) -> str:
    tensors = load_file(target.path)
    message = _change(tensors, target.rng)
    save_file({name: value.clone() for name, value in tensors.items()}, target.path, metadata={"format": "pt"})
    return message


@mutates("safetensors")
def header_changed(target: Target) -> str:
    """Other offsets, shapes and dtypes, or another length of the header."""
    raw = target.path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    kind = target.rng.choice(["length", "value", "nested", "field"])
    if kind == "length":
        wrong = target.rng.choice([0, 1, size - 1, size + 1, 2**63, 2**64 - 1, len(raw)])
        target.path.write_bytes(struct.pack("<Q", wrong) + raw[8:])
        return f"header length {size} became {wrong}"
    if kind == "nested":
        text, message = b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "a header nested 100,000 deep"
    else:
        container, key, path = draw_key(header, target.rng)
        container[key] = target.rng.choice([value for value in VALUES if value != "\ud800"])
        message = f"header {path} = {shown(container[key])}"
        if kind == "field":
            del container[key]
            message = f"header {path} removed"
        text = json.dumps(header).encode()
    target.path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return message


class Bomb:
    """Unpickling it creates a directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (EXECUTED,)


def _load_pickle(path: Path) -> dict[Any, Any]:
    content = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(content, dict):
        raise NotApplicableError
    return content


@mutates("pickle", times=3)
def entry_changed(target: Target) -> str:
    content = _load_pickle(target.path)
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        message = _change(content, target.rng)
    else:
        container, key, path = draw_key(content, target.rng)
        container[key] = target.rng.choice(VALUES)
        message = f"{path} = {shown(container[key])}"
    torch.save(content, target.path)
    return message


@mutates("pickle")
def odd_content(target: Target) -> str:
    content, some = _load_pickle(target.path), torch.ones(3, 3)
    values: list[tuple[str, Any]] = [
        ("an integer", 5),
        ("None", None),
        ("a list of tensors", [some]),
        ("a sparse tensor", some.to_sparse()),
        ("a tensor of the meta device", some.to("meta")),
        ("a tensor in a dictionary", {"a": some}),
        ("a parameter", torch.nn.Parameter(some)),
    ]
    message, value = target.rng.choice(values)
    names = list(content)
    name = target.rng.choice([*names, *names, 5, None, ("a", 1), b"bytes"])
    content[name] = value
    torch.save(content, target.path)
    return f"{name!r}: {message}"


@mutates("pickle")
def another_pickle(target: Target) -> str:
    content = _load_pickle(target.path)
    kind = target.rng.choice(["executes", "list", "plain pickle", "old format", "state_dict"])
    if kind == "plain pickle":
        target.path.write_bytes(pickle.dumps({"a": Bomb()}))
        return kind
    saved = {"executes": {"a": torch.ones(1), "bomb": Bomb()}, "list": [1, 2, 3], "state_dict": {"state_dict": content}}
    torch.save(saved.get(kind, content), target.path, _use_new_zipfile_serialization=kind != "old format")
    return kind
