"""`export --calibration`: NNCF's arithmetic on the verified network, records, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import pytest
from openvino_models import constants
from tiny_models import LAYERS, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import stage_ir
from lonas_edge.exporting.calibration import CalibrationPrompts
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Calibrated, Compression, Manifest

Choose = Callable[[TinySource, str], list[int]]
TEXTS = [np.random.default_rng(seed).integers(2, 288, (1, 7 + 5 * seed)) for seed in range(6)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 short examples."""
    examples = [{"instruction": f"What is {a} plus {b}?", "output": f"the {a + b}"} for a in range(8) for b in range(5)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(examples))
    return path


def run(source: TinySource, widths: list[int], output: Path, data: Path | None, method: str = "gptq", **options: Any) -> Path:
    settings = {"weight_format": "int4", "calibration": data, "int4_method": method, "num_prompts": 8, **options}
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


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        pytest.param("awq", {"awq": True, "scale_estimation": True}, marks=pytest.mark.slow),
        ("gptq", {"gptq": True}),
    ],
)
def test_it_equals_nncf_on_the_fp32_ir(
    method: str,
    asked: dict[str, bool],
    llama: TinySource,
    choose: Choose,
    data: Path,
    exports: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(CalibrationPrompts, "encoded", lambda *_: TEXTS)
    widths = choose(llama, "unequal:1")
    actual = values(run(llama, widths, tmp_path / "out", data, method, weight_format="int4_sym"))
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
            **asked,
        )
    )
    free = values(exports("llama", "unequal:1", weight_format="int4_sym"))
    assert actual.keys() >= free.keys() and actual.keys() == expected.keys()
    for name, (kind, matrix) in expected.items():
        assert actual[name][0] == kind and np.array_equal(actual[name][1], matrix), name
    assert any(not np.array_equal(actual[name][1], free[name][1]) for name in free), "the data changed nothing"


def test_records(llama: TinySource, choose: Choose, data: Path, tmp_path: Path) -> None:
    folder = run(llama, choose(llama, "unequal:1"), tmp_path / "out", data, "awq", group_size=16)
    manifest = Manifest.read(folder / "lonas_edge.json")
    assert manifest.calibrated is not None
    assert manifest.calibrated == Calibrated("awq", "data.json", manifest.calibrated.sha256, 8, manifest.calibrated.tokens)
    assert manifest.calibrated.tokens > 8 * 10
    assert manifest.compression == (Compression("int4", 16, 1.0),)
    assert manifest.fused == 2 * LAYERS
    assert manifest.parity.keys() == {
        "materialized",
        "ir_uncompressed",
        "ir",
    }  # groups of 16 are too small for one of activations
    assert manifest.parity["ir_uncompressed"].max_logit_difference < 1e-3 < manifest.parity["ir"].max_logit_difference
    assert "(awq on 8 prompts of `data.json`)" in (folder / "README.md").read_text()
    assert b"/tmp" not in (folder / "openvino_model.xml").read_bytes()


def test_a_ratio_per_channel(llama: TinySource, choose: Choose, data: Path, tmp_path: Path) -> None:
    folder = run(llama, choose(llama, "minimal"), tmp_path / "out", data, "awq", group_size=-1, ratio=0.5)
    parts = {part.weight_format: part for part in Manifest.read(folder / "lonas_edge.json").compression}
    assert parts.keys() == {"int4", "int8"} and parts["int4"].group_size == -1
    assert 0 < parts["int4"].share <= 0.5 and sum(part.share for part in parts.values()) == pytest.approx(1)
    config = json.loads((folder / "openvino_config.json").read_text())["quantization_config"]
    assert (config["bits"], config["sym"], config["group_size"], config["ratio"]) == (4, False, -1, 0.5)


def test_verification_refuses_a_wrong_graph(
    llama: TinySource, choose: Choose, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two layers' matrices are swapped in the graph, before the compression on data hides it."""
    stock = stage_ir.filled
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))

    def swapped(graph: Path, matrices: dict[str, Any], blocks: Any) -> Any:
        return stock(graph, {**matrices, first: matrices[second], second: matrices[first]}, blocks)

    monkeypatch.setattr(stage_ir, "filled", swapped)
    with pytest.raises(LonasEdgeError, match="verification failed: the logits of the IR differ"):
        run(llama, choose(llama, "minimal"), tmp_path / "out", data)
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


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
    arguments = ["--weight-format", "int4", "--calibration", data, "--num-prompts", 8, "--output", tmp_path / "out"]
    ran = run_cli("export", *llama.arguments(), *arguments)
    assert ran.code == 1 and message in " ".join(ran.err.split()), ran.err
    assert not (tmp_path / "out").exists()
