"""Weight formats as they are exported: group sizes, ratios, bytes, what a client and a device make of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import openvino as ov
import openvino_genai
import pytest
from openvino_models import constants
from optimum.intel import OVModelForCausalLM
from tiny_models import LAYERS, MLP_WIDTHS, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Compression, Manifest
from lonas_edge.formats import FORMATS, PER_CHANNEL
from lonas_edge.ir import support

Choose = Callable[[TinySource, str], list[int]]


def run(source: TinySource, widths: list[int], output: Path, **options: Any) -> Path:
    export(source.opened(), source.subnetwork(widths, "chosen"), output, ExportOptions(**options))
    return output


def kinds(model: Any) -> dict[str, str]:
    """How each weight matrix is stored."""
    found = {name: one.get_element_type().get_type_name() for name, one in constants(model).items() if name.endswith(".weight")}
    return {name: kind for name, kind in found.items() if "layernorm" not in name and "norm." not in name}


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
    weight_format: str, llama: TinySource, choose: Choose, tmp_path: Path
) -> None:
    """Of the .bin, of the manifest, and counted by hand: 3 layers of unequal MLPs, an embedding and a head of 288 rows."""
    widths = choose(llama, "unequal:1")
    folder = run(llama, widths, tmp_path / "out", weight_format=weight_format)
    mlp = [width for width in widths if width > 8]
    assert sorted(mlp) == sorted(MLP_WIDTHS)
    matrices = [(rows, 64) for _ in range(LAYERS) for rows in (64, 32, 32, 64)]
    matrices += [shape for width in mlp for shape in ((width, 64), (width, 64), (64, width))]
    bits, each, group = BITS[weight_format]
    inner = sum(rows * columns * bits + rows * (columns // (group or columns)) * each for rows, columns in matrices)
    whole = BITS[weight_format] if bits > 4 else BITS["int8"]
    outer = 2 * 288 * (64 * whole[0] + whole[1])
    by_hand = (inner + outer) / 8 + (2 * LAYERS + 1) * 64 * 4
    manifest = Manifest.read(folder / "lonas_edge.json")
    assert manifest.verified and 0 <= manifest.parity["ir_stored"].max_logit_difference < 1e-3
    assert manifest.sizes.subnetwork.bytes[weight_format] == by_hand
    assert 0 <= (folder / "openvino_model.bin").stat().st_size - by_hand < 10_000
    assert manifest.compression == (Compression(weight_format, group, 1.0),)


@pytest.mark.parametrize("weight_format", ["int8_sym", "int4_sym"])
def test_stock_clients_open_it(weight_format: str, llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    folder = run(llama, choose(llama, "minimal"), tmp_path / "out", weight_format=weight_format, verify=False)
    config = openvino_genai.GenerationConfig(ignore_eos=True, max_new_tokens=4)
    assert openvino_genai.LLMPipeline(str(folder), "CPU").generate("the inner ones", config)
    model = OVModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == 288


def test_what_stock_exporters_say(llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    options = {"weight_format": "int4_sym", "group_size": PER_CHANNEL, "ratio": 0.5, "verify": False}
    folder = run(llama, choose(llama, "minimal"), tmp_path / "out", **options)
    model = ov.Core().read_model(folder / "openvino_model.xml")
    said = {name: model.get_rt_info(["nncf", "weight_compression", name]).value for name in ("mode", "group_size", "ratio")}
    assert said == {"mode": "int4_sym", "group_size": "-1", "ratio": "0.5"}
    config = json.loads((folder / "openvino_config.json").read_text())
    kept = {name: config["quantization_config"][name] for name in ("bits", "sym", "group_size", "ratio")}
    assert kept == {"bits": 4, "sym": True, "group_size": -1, "ratio": 0.5}
    card = (folder / "README.md").read_text()
    assert " in int4_sym, a scale a row" in card and "% in int8" in card


@pytest.mark.parametrize(("weight_format", "ratio"), [("int4", 0.0), ("int4", 0.3), ("int4_sym", 0.6), ("int4", 1.0)])
def test_a_ratio_is_nncf_s(weight_format: str, ratio: float, llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    """The same matrices get the format as where NNCF is given the whole fp32 IR."""
    widths = choose(llama, "unequal:2")
    plain = run(llama, widths, tmp_path / "fp32", weight_format="fp32", fuse=False, verify=False)
    mode = nncf.CompressWeightsMode[FORMATS[weight_format].mode or ""]
    whole = ov.Core().read_model(plain / "openvino_model.xml")
    stock = nncf.compress_weights(whole, mode=mode, ratio=ratio or 1e-9, group_size=32)  # it takes 0 for 1
    folder = run(llama, widths, tmp_path / "out", weight_format=weight_format, ratio=ratio, fuse=False)
    model = ov.Core().read_model(folder / "openvino_model.xml")
    expected, found = kinds(stock), kinds(model)
    assert found == expected
    assert len(set(found.values())) == (1 if ratio == 0 else 2)  # int8 of embedding and head is always there
    parts = Manifest.read(folder / "lonas_edge.json").compression
    share = next((part.share for part in parts if part.weight_format == weight_format), 0)
    assert share == 1 if ratio == 1 else share < max(ratio, 1e-9)
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_products_of_mixed_formats_are_fused_where_they_may_be(llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    """A verified IR, with fewer matrices than there are, and no stack of two formats."""
    folder = run(llama, choose(llama, "unequal:2"), tmp_path / "out", weight_format="int4", ratio=0.6)
    fused = Manifest.read(folder / "lonas_edge.json").fused
    assert len(kinds(ov.Core().read_model(folder / "openvino_model.xml"))) == 7 * LAYERS + 2 - fused
    assert fused < 2 * LAYERS, "no layer has q, k and v in two formats: another ratio would say more"


def test_a_group_size_that_fits(llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    folder = run(llama, choose(llama, "unequal:1"), tmp_path / "out", weight_format="int4", group_size=16)
    model = ov.Core().read_model(folder / "openvino_model.xml")
    shapes = {name: tuple(one.shape) for name, one in constants(model).items() if name.endswith("o_proj.weight")}
    assert set(shapes.values()) == {(64, 4, 16)} and len(shapes) == LAYERS
    assert Manifest.read(folder / "lonas_edge.json").compression == (Compression("int4", 16, 1.0),)


def test_a_group_size_that_does_not_fit(run_cli: Callable, llama: TinySource, choose: Choose, tmp_path: Path) -> None:
    """Every width that it does not divide is named, with those that fit, and nothing is written."""
    widths = choose(llama, "unequal:1")
    (tmp_path / "subnet.json").write_text(json.dumps({"widths": widths}))
    arguments = [
        *llama.arguments(),
        "--subnet",
        tmp_path / "subnet.json",
        "--output",
        tmp_path / "out",
        "--weight-format",
        "int4",
    ]
    for size, wrong in ((64, [96]), (48, [64, 128])):
        ran = run_cli("export", *arguments, "--group-size", str(size))
        told = " ".join(ran.err.split())
        assert ran.code == 1 and f"--group-size {size} does not divide the input width of every layer" in told
        assert [width for width in (64, 96, 128) if f"{width} columns: " in told] == wrong
        assert "Use one of 32, 16, -1." in told
    layer = [width for width in widths if width > 8].index(128)
    assert f"128 columns: model.layers.{layer}.mlp.down_proj" in told
    assert not (tmp_path / "out").exists()


def test_a_device_that_refuses_a_format(
    llama: TinySource, choose: Choose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Named, with the formats that the device takes; this machine's takes all."""
    assert support.taken("CPU") == list(FORMATS)

    def refuse(*_: object) -> None:
        raise RuntimeError("Check failed\nint4 is not supported")

    monkeypatch.setattr(verify, "ir_logits", refuse)
    monkeypatch.setattr(support, "_takes", lambda _device, weight_format: weight_format.name in ("fp32", "int8"))
    with pytest.raises(LonasEdgeError, match=r"CPU does not run an IR in int4: int4 is not supported\nIt takes: fp32, int8\. "):
        run(llama, choose(llama, "minimal"), tmp_path / "out", weight_format="int4")
    assert not list(tmp_path.iterdir())
