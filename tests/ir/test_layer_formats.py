"""A sub-network file that names the formats of layers: the IR mixes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import openvino_genai
import pytest
from openvino_models import constants
from tiny_models import LAYERS, TinySource

from lonas_edge.exporting.manifest import Manifest
from lonas_edge.formats import FORMATS

Choose = Callable[[TinySource, str], list[int]]
NAMES = {"u8": "int8", "i8": "int8_sym", "u4": "int4", "i4": "int4_sym", "f16": "fp16", "f32": "fp32"}
FIRST, SECOND = "model.layers.0", "model.layers.1"


@pytest.fixture
def exported(llama: TinySource, choose: Choose, run_cli: Callable, tmp_path: Path) -> Callable[..., Any]:
    """`exported(formats, *options)` runs the command on a sub-network file with them."""

    def run(formats: dict[str, str], *options: object, widths: str = "unequal:1") -> Any:
        file = tmp_path / "mixed.json"
        file.write_text(json.dumps({"widths": choose(llama, widths), "weight_formats": formats}))
        source = [*llama.arguments(), "--subnet", file, "--output", tmp_path / "out"]
        return run_cli("export", *source, *options)

    return run


def stored(folder: Path) -> dict[str, str]:
    """How each matrix between embedding and head is stored, by the IR's own types; stacks by each of their layers."""
    model = ov.Core().read_model(folder / "openvino_model.xml")
    found = {}
    for name, one in constants(model).items():
        block, _, layers = name.removesuffix(".weight").rpartition(".")
        if name.endswith("_proj.weight"):
            found |= {f"{block}.{layer}": NAMES[one.get_element_type().get_type_name()] for layer in layers.split("+")}
    return found


def test_each_layer_has_its_format_and_the_longest_path_decides(exported: Callable, tmp_path: Path) -> None:
    formats = {FIRST: "int4", f"{FIRST}.mlp": "fp16", f"{FIRST}.mlp.down_proj": "int8", f"{SECOND}.self_attn": "int4_sym"}
    ran = exported(formats, "--weight-format", "int8_sym")
    assert ran.code == 0, ran.err
    found = stored(tmp_path / "out")
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    expected = {
        f"model.layers.{layer}.{block}.{name}": "int8_sym"
        for layer in range(LAYERS)
        for block, name in (*(("self_attn", name) for name in attention), *(("mlp", name) for name in mlp))
    }
    expected |= {f"{FIRST}.self_attn.{name}": "int4" for name in attention}
    expected |= {f"{FIRST}.mlp.gate_proj": "fp16", f"{FIRST}.mlp.up_proj": "fp16", f"{FIRST}.mlp.down_proj": "int8"}
    expected |= {f"{SECOND}.self_attn.{name}": "int4_sym" for name in attention}
    assert found == expected
    manifest = Manifest.read(tmp_path / "out/lonas_edge.json")
    assert 0 < manifest.parity["ir_stored"].max_logit_difference < 1e-3
    assert {part.weight_format for part in manifest.compression} == {"int8_sym", "int4", "fp16", "int8", "int4_sym"}
    assert sum(part.share for part in manifest.compression) == pytest.approx(1)
    assert (manifest.weight_format, set(manifest.formats.split(" and "))) == ("int8_sym", set(NAMES.values()) - {"fp32"})
    assert f"sub-network, {manifest.formats}\n" in (tmp_path / "out/README.md").read_text()
    assert f"sub-network, {manifest.formats}, " in " ".join(ran.out.split())
    assert manifest.fused == 2 * LAYERS, "q, k and v of a layer have one format each time"
    assert json.loads((tmp_path / "out/subnetwork.json").read_text())["weight_formats"] == formats
    config = openvino_genai.GenerationConfig(ignore_eos=True, max_new_tokens=4)
    assert openvino_genai.LLMPipeline(str(tmp_path / "out"), "CPU").generate("the inner ones", config)


def test_no_stack_of_two_formats(exported: Callable, tmp_path: Path) -> None:
    ran = exported({f"{FIRST}.self_attn.q_proj": "int8", f"{SECOND}.self_attn.v_proj": "fp16"})
    assert ran.code == 0, ran.err
    assert Manifest.read(tmp_path / "out/lonas_edge.json").fused == 2 * (LAYERS - 2) + 2
    found = stored(tmp_path / "out")
    assert found[f"{FIRST}.self_attn.q_proj"] == "int8" and found[f"{FIRST}.self_attn.k_proj"] == "int8_sym"
    assert found[f"{SECOND}.self_attn.v_proj"] == "fp16" and found[f"{SECOND}.self_attn.k_proj"] == "int8_sym"


def test_a_group_size_is_of_the_layers_that_get_the_format(exported: Callable, tmp_path: Path) -> None:
    """64 divides the width of attention and of one MLP, and not that of all: with int4 everywhere groups would have 32."""
    ran = exported({f"model.layers.{layer}.self_attn": "int4" for layer in range(LAYERS)}, "--weight-format", "int8")
    assert ran.code == 0, ran.err
    parts = {part.weight_format: part.group_size for part in Manifest.read(tmp_path / "out/lonas_edge.json").compression}
    assert parts == {"int8": None, "int4": 64}


def test_an_asked_group_size_is_of_the_others(exported: Callable, tmp_path: Path) -> None:
    mlps = {f"model.layers.{layer}.mlp": "int8" for layer in range(LAYERS)}
    ran = exported(mlps, "--weight-format", "int4", "--group-size", "64")
    assert ran.code == 0, ran.err
    assert {part.weight_format for part in Manifest.read(tmp_path / "out/lonas_edge.json").compression} == {"int4", "int8"}


def test_bytes_are_fewer_the_more_layers_are_in_int4(exported: Callable, tmp_path: Path) -> None:
    sizes = []
    for count in range(LAYERS + 1):
        ran = exported({f"model.layers.{layer}": "int4" for layer in range(count)}, "--no-verify", "--overwrite")
        assert ran.code == 0, ran.err
        sizes.append((tmp_path / "out/openvino_model.bin").stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == LAYERS + 1


def test_a_block_that_is_left_out_has_no_format_to_get(exported: Callable, tmp_path: Path) -> None:
    ran = exported({f"{FIRST}.mlp": "int4"}, widths="minimal")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("formats", "options", "told"),
    [
        (
            {"model.layers.9": "int8", "layers.0": "int8", FIRST: "int4"},
            (),
            ["model.layers.9: the model has no", "layers.0: the"],
        ),
        ({"lm_head": "int4", "model.embed_tokens": "int4"}, (), ["lm_head: the model has no", "model.embed_tokens: the model"]),
        ({"model.layers.0.ml": "int4", "model": "int4"}, (), ["model.layers.0.ml: the model has no"]),
        ({FIRST: "q8_0"}, (), ["weight_formats", "'q8_0' is not one of fp32, fp16"]),
        ({FIRST: "int8"}, ("--weight-format", "int4", "--ratio", "0.5"), ["which --ratio would choose"]),
    ],
)
def test_what_does_not_fit_is_named(
    exported: Callable, tmp_path: Path, formats: dict[str, str], options: tuple[str, ...], told: list[str]
) -> None:
    ran = exported(formats, *options)
    assert ran.code == 1 and not (tmp_path / "out").exists()
    assert all(text in " ".join(ran.err.split()) for text in told), ran.err
    assert f"{FIRST}: the model has no" not in ran.err


def test_no_group_size_that_fits(exported: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its widths are named; everywhere else such a format falls back to INT8, here it was asked for by name."""
    monkeypatch.setattr("lonas_edge.formats._GROUPS", (48,))
    monkeypatch.setitem(FORMATS, "int4", FORMATS["int4"].with_group_size(48))
    ran = exported({f"{FIRST}.self_attn": "int4"})
    assert ran.code == 1 and "int4: no group size of 48 divides the input width of all its layers: 64" in ran.err
