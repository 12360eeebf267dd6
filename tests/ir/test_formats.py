"""Weight formats as they are exported: group sizes, ratios, bytes, and devices that refuse one."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import pytest
from openvino_models import constants, read_ir
from tiny_models import LAYERS, MLP_WIDTHS, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import changed_files
from lonas_edge.exporting.manifest import Compression, Manifest
from lonas_edge.formats import FORMATS, PER_CHANNEL, activation_group

Choose = Callable[[TinySource, str], list[int]]
Exports = Callable[..., Path]


def kinds(model: Any) -> dict[str, str]:
    """Element type of each weight matrix."""
    types = {
        name: node.get_element_type().get_type_name() for name, node in constants(model).items() if name.endswith(".weight")
    }
    return {name: kind for name, kind in types.items() if "layernorm" not in name and "norm." not in name}


# bits of a weight; bits of scale and zero point for each row or group; columns of a group: the definitions of the formats
BITS = {
    "fp32": (32, 0, None),
    "fp16": (16, 0, None),
    "int8": (8, 16 + 8, None),
    "int8_sym": (8, 16, None),
    "int4": (4, 16 + 4, 32),
    "int4_sym": (4, 16, 32),
}


@pytest.mark.parametrize("weight_format", FORMATS)
def test_every_format_is_verified_and_has_its_bytes(
    weight_format: str, llama: TinySource, choose: Choose, exports: Exports
) -> None:
    """Of the .bin and of the manifest: 3 layers of unequal MLPs, an embedding and a head of 288 rows."""
    folder = exports("llama", "unequal:1", weight_format=weight_format)
    mlp = [width for width in choose(llama, "unequal:1") if width > 8]
    assert sorted(mlp) == sorted(MLP_WIDTHS)
    matrices = [(rows, 64) for _ in range(LAYERS) for rows in (64, 32, 32, 64)]
    matrices += [shape for width in mlp for shape in ((width, 64), (width, 64), (64, width))]
    bits, each, group = BITS[weight_format]
    inner = sum(rows * columns * bits + rows * (columns // (group or columns)) * each for rows, columns in matrices)
    outer_bits, outer_each, _ = BITS[weight_format] if bits > 4 else BITS["int8"]
    outer = 2 * 288 * (64 * outer_bits + outer_each)
    expected = (inner + outer) / 8 + (2 * LAYERS + 1) * 64 * 4
    manifest = Manifest.read(folder / "lonas_edge.json")
    assert manifest.verified and 0 <= manifest.parity["ir_stored"].max_logit_difference < 1e-3
    assert manifest.sizes.subnetwork.bytes[weight_format] == expected
    assert 0 <= (folder / "openvino_model.bin").stat().st_size - expected < 10_000
    assert manifest.compression == (Compression(weight_format, group, 1.0),)


def test_records_of_stock_exporters(exports: Exports) -> None:
    folder = exports("llama", "minimal", weight_format="int4_sym", group_size=PER_CHANNEL, verify=False)
    model = read_ir(folder)
    record = {name: model.get_rt_info(["nncf", "weight_compression", name]).value for name in ("mode", "group_size")}
    assert record == {"mode": "int4_sym", "group_size": "-1"}
    config = json.loads((folder / "openvino_config.json").read_text())["quantization_config"]
    assert (config["bits"], config["sym"], config["group_size"], config["ratio"]) == (4, True, -1, 1.0)
    card = (folder / "README.md").read_text()
    assert "100% in int4_sym, one scale per row" in card


def test_a_group_size_that_does_not_fit(run_cli: Callable, llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    """The error names every width that it does not divide, and sizes that fit."""
    widths = choose(llama, "unequal:1")
    (tmp_path / "subnet.json").write_text(json.dumps({"widths": widths}))
    files = ["--subnet", tmp_path / "subnet.json", "--output", tmp_path / "out"]
    for size, wrong in ((64, [96]), (48, [64, 128])):
        ran = run_cli("export", *llama.arguments(), *files, "--weight-format", "int4", "--group-size", str(size))
        message = " ".join(ran.err.split())
        assert ran.code == 1 and f"--group-size {size} does not divide the input width of every layer" in message
        assert [width for width in (64, 96, 128) if f"{width} columns: " in message] == wrong
        assert "Use one of 32, 16, -1." in message
    layer = [width for width in widths if width > 8].index(128)
    assert f"128 columns: model.layers.{layer}.mlp.down_proj" in message
    assert not (tmp_path / "out").exists()


def test_a_device_that_refuses_a_format(llama: TinySource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Check failed\nint4 is not supported")

    monkeypatch.setattr(verify, "ir_logits", refuse)
    opened = llama.opened()
    with pytest.raises(LonasEdgeError, match=r"an IR in int4 on this CPU: int4 is not supported\. Choose"):
        export(opened, opened.select("minimal"), tmp_path / "out", ExportOptions("int4"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("widths", "weights", "group"),
    [
        ([576, 1536], PER_CHANNEL, 192),  # SmolLM2-135M: 3 and 8 groups
        ([576, 1536], 64, 64),
        ([576, 1536, 1088], PER_CHANNEL, 64),  # 1088 = 17 x 64
        ([2048, 5632], PER_CHANNEL, 256),
        ([2048, 5632], 128, 128),
        ([64, 96], PER_CHANNEL, None),
        ([576, 1536], 32, None),  # the plugin's default is 32
    ],
)
def test_the_group_of_activations_divides_all_widths(widths: list[int], weights: int, group: int | None) -> None:
    assert activation_group(widths, weights) == group


@pytest.mark.parametrize(("limit", "group"), [(1.0, 64), (-1.0, 32), (math.nan, 32)])
def test_a_group_that_changes_the_outputs_is_not_stored(
    limit: float, group: int, llama: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any change is above -1, and none below NaN: the plugin's default remains; the record has the hash of the final file."""
    monkeypatch.setitem(verify.MAX_OF_GROUP, "logits", limit)
    source = llama.opened()
    manifest = export(source, source.select("maximal"), tmp_path / "out", ExportOptions(weight_format="int8_sym"))
    compiled = ov.Core().compile_model(read_ir(tmp_path / "out"), "CPU")
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == group
    assert changed_files(tmp_path / "out", Manifest.read(tmp_path / "out/lonas_edge.json")) == []
    parity = manifest.parity["ir_groups"]
    assert parity.positions == manifest.parity["ir"].positions
    assert parity.max_logit_difference > 0.01  # INT8 activations; fp32 alone changes less than 1e-3
    assert 0 < parity.mean_kl < 0.01


def test_formats_without_a_group_are_not_compared_with_one(exports: Exports) -> None:
    assert "ir_groups" not in Manifest.read(exports("llama", "maximal", weight_format="fp16") / "lonas_edge.json").parity
