"""`--head-format`: the stored head against quantization in plain numpy, records."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openvino_models import constants, ir_logits, read_ir
from safetensors.numpy import load_file
from tiny_models import HIDDEN, VOCAB, TinyModels, TinySource

from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Compression, Manifest
from lonas_edge.formats import FORMATS, PER_CHANNEL
from lonas_edge.network.source import open_source

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Exports = Callable[..., Path]


def quantized(matrix: np.ndarray, name: str, group: int) -> np.ndarray:
    """A matrix after compression, by the definition of the formats: scales in fp16, the largest weight of a group exact."""
    bits, parts = int(name[3]), matrix.reshape(len(matrix), -1, group)
    low, high = parts.min(-1, keepdims=True), parts.max(-1, keepdims=True)
    if name.endswith("_sym"):
        least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale, zero = np.where(-low >= high, low, high) / least, np.float32(0)
    else:
        least, most = 0, 2**bits - 1
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = (high - low) / most
        zero = np.clip(np.round(-low / scale), least, most)
    codes = np.clip(np.round(parts / scale + zero), least, most)
    return ((codes - zero) * scale.astype(np.float16).astype(np.float32)).reshape(matrix.shape)


def used_by(model: Any, kind: str) -> Any:
    """The constant of the last MatMul (the head's), or of the first Gather from a table with a row for each token."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == kind]
    for node in nodes[::-1] if kind == "MatMul" else nodes:
        source = node.input_value(0 if kind == "Gather" else 1).get_node()
        while source.get_type_name() != "Constant" and source.get_input_size():
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant" and len(source.shape) > 1 and source.shape[0] == VOCAB:
            return source
    raise AssertionError(f"no {kind} of the vocabulary")


def restored(model: Any, name: str) -> np.ndarray:
    """A matrix as the IR stores it, decompressed."""
    parts = {key.removeprefix(name): node.get_data(dtype=np.float32) for key, node in constants(model).items()}
    return ((parts[""] - parts.get("/zero_point", 0)) * parts["/scale"]).reshape(VOCAB, HIDDEN)


@pytest.mark.parametrize(
    ("weight_format", "head_format", "kind", "group", "tied"),
    [
        ("int4_sym", "int4_sym", "i4", 64, False),  # layers have groups of 32, because one has 96 columns
        ("int4_sym", "int4", "u4", 64, True),
        ("int4", "int8_sym", "i8", None, False),
        ("int4", "int8_sym", "i8", None, True),
        ("int8_sym", "int4_sym", "i4", 64, True),
    ],
)
def test_the_stored_head(
    weight_format: str, head_format: str, kind: str, group: int | None, tied: bool, tiny_models: TinyModels, exports: Exports
) -> None:
    """Its constant has the format's bits and values; an embedding that shares its weight is the same constant."""
    case = "llama-tied" if tied else "llama"
    folder = exports(case, "unequal:1", weight_format=weight_format, head_format=head_format)
    model, name = read_ir(folder), EMBEDDING if tied else HEAD
    head, embedding = used_by(model, "MatMul"), used_by(model, "Gather")
    assert (head.friendly_name, head.get_element_type().get_type_name()) == (name, kind)
    outer = "int8" if weight_format.startswith("int4") else weight_format
    assert embedding.friendly_name == EMBEDDING
    assert embedding.get_element_type().get_type_name() == (kind if tied else {"int8": "u8", "int8_sym": "i8"}[outer])
    weights = load_file(tiny_models.base(case) / "model.safetensors")
    assert np.allclose(restored(model, name), quantized(weights[name], head_format, group or HIDDEN), atol=1e-6)
    if not tied:
        assert np.allclose(restored(model, EMBEDDING), quantized(weights[EMBEDDING], outer, HIDDEN), atol=1e-6)
    manifest = Manifest.read(folder / "lonas_edge.json")
    assert manifest.parity["ir_stored"].max_logit_difference < 1e-3
    assert manifest.head == Compression(head_format, group, 1.0)
    assert f"Output head: {head_format}" + (f", group size {group}." if group else ".") in (folder / "README.md").read_text()


def test_a_group_size_is_the_heads_too(exports: Exports) -> None:
    options = {"weight_format": "int4_sym", "head_format": "int4_sym", "verify": False}
    for size, shape in ((16, [VOCAB, HIDDEN // 16, 16]), (PER_CHANNEL, [VOCAB, HIDDEN])):
        model = read_ir(exports("llama", "unequal:1", group_size=size, **options))
        assert [extent for extent in used_by(model, "MatMul").shape if extent != 1] == shape


@pytest.mark.parametrize("group", [32, 64])
def test_groups_of_activations_fit_the_head(
    group: int, llama: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 divides all widths; a group larger than that of the head's weights would be slower than the plugin's default."""
    monkeypatch.setitem(FORMATS, "int4_sym", replace(FORMATS["int4_sym"], group_sizes=(group,)))
    opened = llama.opened()
    export(opened, opened.select("maximal"), tmp_path / "out", ExportOptions("int8_sym", head_format="int4_sym", verify=False))
    assert read_ir(tmp_path / "out").has_rt_info(["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]) == (group == 64)


def test_an_adapter_on_a_tied_head(tiny_models: TinyModels, tmp_path: Path, ids: Any) -> None:
    """It gives the head a weight of its own; the embedding stays INT8."""
    tiny = tiny_models.source("llama-tied")
    adapter = tiny_models.adapter("llama-tied", modules_to_save=["lm_head"])
    source = open_source(str(adapter), str(tiny.base), tiny.space)
    export(source, source.select("minimal"), tmp_path / "out", ExportOptions("int4_sym", head_format="int4_sym"))
    model = read_ir(tmp_path / "out")
    kinds = [used_by(model, kind).get_element_type().get_type_name() for kind in ("MatMul", "Gather")]
    assert kinds == ["i4", "u8"] and ir_logits(tmp_path / "out", ids).isfinite().all()
