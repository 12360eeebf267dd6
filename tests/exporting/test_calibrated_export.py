"""`export --calibration`: NNCF's arithmetic on the verified network, records, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import pytest
import torch
from openvino_models import constants, ir_logits
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import calibration, stage_ir
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Calibrated, Compression, Manifest
from lonas_edge.network.source import Source

Choose = Callable[[TinySource, str], list[int]]
TEXTS = [np.random.default_rng(seed).integers(2, 288, (1, 7 + 5 * seed)) for seed in range(6)]


def run(source: TinySource, widths: list[int], output: Path, data: Path | None, **options: Any) -> Path:
    settings = {"weight_format": "int4", "calibration": data, **options}
    export(source.opened(), source.subnetwork(widths, "chosen"), output, ExportOptions(**settings))
    return output


def values(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Type and values of the constants that belong to weights."""
    return stored(ov.Core().read_model(folder / "openvino_model.xml"))


def stored(model: Any) -> dict[str, tuple[str, np.ndarray]]:
    return {
        name: (str(constant.get_element_type()), np.array(constant.get_data(dtype=np.float32)))
        for name, constant in constants(model).items()
        if ".weight" in name
    }


def test_it_equals_nncf_on_the_fp32_ir(
    llama: TinySource, choose: Choose, data: Path, exports: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calibration, "_encode", lambda *_: TEXTS)
    widths = choose(llama, "unequal:1")
    actual = values(run(llama, widths, tmp_path / "out", data, weight_format="int4_sym"))
    uncompressed = exports("llama", "unequal:1", weight_format="fp32", verify=False)
    inputs = [
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.size)[None],
            "beam_idx": np.array([0], np.int32),
        }
        for ids in TEXTS
    ]
    expected = stored(
        nncf.compress_weights(
            ov.Core().read_model(uncompressed / "openvino_model.xml"),
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=32,
            dataset=nncf.Dataset(inputs),
            gptq=True,
        )
    )
    free = values(exports("llama", "unequal:1", weight_format="int4_sym"))
    assert actual.keys() >= free.keys() and actual.keys() == expected.keys()
    for name, (kind, matrix) in expected.items():
        assert actual[name][0] == kind and np.array_equal(actual[name][1], matrix), name
    assert any(not np.array_equal(actual[name][1], free[name][1]) for name in free), "the data changed nothing"


def test_records(llama: TinySource, choose: Choose, data: Path, tmp_path: Path) -> None:
    folder = run(llama, choose(llama, "unequal:1"), tmp_path / "out", data, group_size=16)
    manifest = Manifest.read(folder / "lonas_edge.json")
    assert manifest.calibrated is not None
    assert manifest.calibrated == Calibrated("gptq", "data.json", manifest.calibrated.sha256, 40, manifest.calibrated.tokens)
    assert manifest.calibrated.tokens > 40 * 10
    assert manifest.compression == (Compression("int4", 16, 1.0),)
    assert manifest.fused == 2 * LAYERS
    assert manifest.parity.keys() == {
        "materialized",
        "ir_uncompressed",
        "ir",
    }  # groups of 16 are too small for one of activations
    assert manifest.parity["ir_uncompressed"].max_logit_difference < 1e-3 < manifest.parity["ir"].max_logit_difference
    assert "(gptq on 40 prompts of `data.json`)" in (folder / "README.md").read_text()
    assert b"/tmp" not in (folder / "openvino_model.xml").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [([{"instruction": "What?", "output": "that"}] * 3, "3 prompts; expected at least 8"), ({"no": "list"}, "data.json")],
    ids=["few", "no-list"],
)
def test_bad_data(
    content: Any,
    message: str,
    run_cli: Callable,
    llama: TinySource,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Refused before a weight is read."""
    monkeypatch.setattr(stage_ir, "GraphConversion", lambda _: pytest.fail("it has started"))
    data.write_text(json.dumps(content))
    arguments = ["--weight-format", "int4", "--calibration", data, "--output", tmp_path / "out"]
    ran = run_cli("export", *llama.arguments(), *arguments)
    assert ran.code == 1 and message in " ".join(ran.err.split()), ran.err
    assert not (tmp_path / "out").exists()


def test_a_head_on_data(llama: TinySource, choose: Choose, data: Path, exports: Callable[..., Path], tmp_path: Path) -> None:
    """With the layers: these are as without it, and the head is in four bits."""
    widths = choose(llama, "unequal:1")
    plain = values(run(llama, widths, tmp_path / "plain", data, weight_format="int4_sym"))
    both = run(llama, widths, tmp_path / "both", data, weight_format="int4_sym", head_format="int4_sym")
    actual, free = values(both), values(exports("llama", "unequal:1", weight_format="int4_sym", head_format="int4_sym"))
    head = "lm_head.weight"
    for name, (kind, matrix) in plain.items():
        assert name.startswith(head) or (actual[name][0] == kind and np.array_equal(actual[name][1], matrix)), name
    assert actual[head][0] == free[head][0] and actual[head][1].shape == free[head][1].shape
    assert not np.array_equal(actual[head][1], free[head][1]), "the data changed nothing"
    manifest = Manifest.read(both / "lonas_edge.json")
    assert manifest.head == Compression("int4_sym", 64, 1.0) and manifest.compression == (Compression("int4_sym", 32, 1.0),)
    recorded = [
        ov.Core().read_model(both / "openvino_model.xml").get_rt_info(["nncf", "weight_compression", name]).value
        for name in ("mode", "group_size")
    ]
    assert recorded == ["int4_sym", "32"], "of the layers"


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
def test_the_head_alone_where_layers_are_trained(
    tied: bool, tiny_models: TinyModels, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Layers are stored as without data. Logits change less than without data; a tied embedding is the same matrix."""
    monkeypatch.setattr(Source, "trained_as", "int4_sym")
    monkeypatch.setattr(calibration, "_encode", lambda *_: TEXTS)
    source = tiny_models.source("llama-tied" if tied else "llama").opened()
    name, calibrated = "model.embed_tokens.weight" if tied else "lm_head.weight", {"calibration": data}
    cases = {"plain": {}, "free": {"head_format": "int4_sym"}, "data": {"head_format": "int4_sym", **calibrated}}
    for case, options in cases.items():
        export(source, source.select("maximal"), tmp_path / case, ExportOptions("int4_sym", **options))
    models = {case: ov.Core().read_model(tmp_path / case / "openvino_model.xml") for case in cases}
    plain, actual = stored(models["plain"]), stored(models["data"])
    assert actual[name][0] == stored(models["free"])[name][0]
    for layer, (kind, matrix) in plain.items():
        assert layer.startswith(name) or (actual[layer][0] == kind and np.array_equal(actual[layer][1], matrix)), layer
    exact = [ir_logits(tmp_path / "plain", torch.from_numpy(ids)) for ids in TEXTS]

    def error(case: str) -> float:
        logits = [ir_logits(tmp_path / case, torch.from_numpy(ids)) for ids in TEXTS]
        return sum(float((a - b).square().sum()) for a, b in zip(logits, exact, strict=True))

    errors = {case: error(case) for case in ("free", "data")}
    assert tied or 0 < errors["data"] < 0.8 * errors["free"], errors
    assert sum(node.friendly_name == name for node in models["data"].get_ops()) == 1
    assert (tmp_path / "data/openvino_model.bin").stat().st_size == (tmp_path / "free/openvino_model.bin").stat().st_size
    manifest = Manifest.read(tmp_path / "data/lonas_edge.json")
    assert manifest.head == Compression("int4_sym", 64, 1.0) and manifest.compression == (Compression("int4_sym", 64, 1.0),)
    assert manifest.calibrated is not None and manifest.calibrated.method is None
    card = (tmp_path / "data/README.md").read_text()
    assert "100% in int4_sym, group size 64." in card
    assert "Output head: int4_sym, group size 64 (gptq on 40 prompts of `data.json`)." in card
    assert manifest.parity["ir_uncompressed"].max_logit_difference < 1e-3 < manifest.parity["ir"].max_logit_difference


def test_a_head_that_does_not_get_the_format(llama: TinySource, choose: Choose, data: Path, tmp_path: Path) -> None:
    for options in ({"head_format": "int8_sym"}, {"head_format": "int8"}):
        with pytest.raises(LonasEdgeError, match="--head-format"):
            run(llama, choose(llama, "minimal"), tmp_path / "out", data, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gemma2-tied", "bloom-tied", "granite4-mamba", "gemma3n", "neox", "phi3"])
def test_a_head_of_every_family(
    case: str, tiny_models: TinyModels, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Source, "trained_as", "int4_sym")
    monkeypatch.setattr(calibration, "_encode", lambda *_: TEXTS)
    source = tiny_models.source(case).opened()
    folder = tmp_path / "out"
    export(source, source.select("maximal"), folder, ExportOptions("int4_sym", head_format="int4", calibration=data))
    manifest = Manifest.read(folder / "lonas_edge.json")
    assert manifest.head is not None and manifest.head.weight_format == "int4"
    assert manifest.parity["ir_uncompressed"].max_logit_difference < 1e-3
    assert ir_logits(folder, torch.from_numpy(TEXTS[0])).isfinite().all()
