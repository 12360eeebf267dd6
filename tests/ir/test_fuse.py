"""Fused matrices: the numbers stay, only equal products are fused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from openvino_models import constants, ir_logits, stored_matrices
from oracle import oracle_logits
from tiny_models import LAYERS, TinyModels, TinySource, families

from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.formats import FORMATS
from lonas_edge.ir.compress import Compressed, stack
from lonas_edge.ir.fuse import fuse
from lonas_edge.ir.schemes import Scheme

Choose = Callable[[TinySource, str], list[int]]
INT8, INT4, FP32 = Scheme(FORMATS["int8"]), Scheme(FORMATS["int4"], 32), Scheme(FORMATS["fp32"])


def exported(source: TinySource, widths: list[int], output: Path, **options: Any) -> Path:
    export(source.opened(), source.subnetwork(widths, "chosen"), output, ExportOptions(**options))
    return output


def unpacked(tensor: ov.Tensor) -> np.ndarray:
    """Values of a tensor, one an element."""
    shape = list(tensor.get_shape())
    if tensor.get_element_type() != ov.Type.u4:
        return tensor.data
    values = [half for byte in tensor.data.reshape(-1).tolist() for half in (byte % 16, byte // 16)]
    return np.array(values[: int(np.prod(shape))]).reshape(shape)


def stored(folder: Path) -> dict[str, np.ndarray]:
    """The constants of an IR; copied, as the model goes."""
    model = ov.Core().read_model(folder / "openvino_model.xml")
    return {name: constant.data.copy() for name, constant in constants(model).items()}


def products(folder: Path) -> int:
    return sum(operation == "MatMul" for operation, _, _ in stored_matrices(folder))


# 5 x 3 groups is odd: the second matrix's zero points begin in the middle of a byte
@pytest.mark.parametrize("rows", [(5, 2, 4), (4, 2, 2)], ids=["odd", "even"])
@pytest.mark.parametrize("scheme", [INT8, INT4], ids=["int8", "int4"])
def test_stacked_and_taken_apart(scheme: Scheme, rows: Sequence[int]) -> None:
    draw, parts = np.random.default_rng(0), []
    kind, groups = (ov.Type.u8, []) if scheme is INT8 else (ov.Type.u4, [3])
    for count in rows:

        def codes(shape: Sequence[int]) -> ov.Tensor:
            values = draw.integers(0, 16, int(np.prod(shape)), np.uint8)
            if kind == ov.Type.u8:
                return ov.Tensor(values.reshape(shape))
            values = np.append(values, np.zeros(len(values) % 2, np.uint8))
            return ov.Tensor(values[0::2] + 16 * values[1::2], list(shape), kind)

        shape = [count, *groups, 96 // (groups or [1])[0]]
        scale = ov.Tensor(draw.standard_normal([*shape[:-1], 1]).astype(np.float16))
        parts.append(Compressed(scheme, (count, 96), codes(shape), codes([*shape[:-1], 1]), scale))
    stacked, views = stack(parts)
    assert stacked.shape == (sum(rows), 96) and stacked.scheme == scheme
    for name in ("codes", "zero_point", "scale"):
        each = [getattr(part, name) for part in parts]
        assert np.array_equal(unpacked(getattr(stacked, name)), np.concatenate([unpacked(tensor) for tensor in each])), name
        for view, tensor in zip(views, each, strict=True):
            assert np.array_equal(unpacked(getattr(view, name)), unpacked(tensor)), name
    for view, part in zip(views, parts, strict=True):
        assert view.shape == part.shape
        assert np.shares_memory(view.codes.data, stacked.codes.data)


@pytest.mark.parametrize("case", families("llama-biased", "gemma3", "olmo2", "phi3"))  # the others: test_export_families
def test_every_family(case: str, tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, tmp_path: Path) -> None:
    """Two products a layer less, q, k and v stacked, logits of the oracle."""
    source = tiny_models.source(case)
    widths = choose(source, "unequal:1")
    fused, separate = (
        exported(source, widths, tmp_path / str(fuse), weight_format="fp32", fuse=fuse) for fuse in (True, False)
    )
    stacked = 0 if case == "phi3" else 2 * LAYERS
    assert products(separate) - products(fused) == stacked == Manifest.read(fused / "lonas_edge.json").fused
    assert Manifest.read(separate / "lonas_edge.json").fused == 0
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (ir_logits(fused, ids) - expected).abs().max() < 1e-3
    before, after = stored(separate), stored(fused)
    for layer in range(LAYERS if stacked else 0):
        block = f"model.layers.{layer}.self_attn"
        parts = [before[f"{block}.{name}_proj.weight"] for name in "qkv"]
        assert np.array_equal(after[f"{block}.q_proj+k_proj+v_proj.weight"], np.concatenate(parts))
        assert {f"{block}.o_proj.weight", f"model.layers.{layer}.mlp.gate_proj.weight"} <= after.keys()
        assert not [name for name in after if name.startswith(f"{block}.k_proj")]


@pytest.mark.parametrize(("case", "weight_format"), [("qwen2-tied", "int8"), ("llama", "int4")])
def test_formats(case: str, weight_format: str, ids: torch.Tensor, exports: Callable[..., Path]) -> None:
    """qwen2 has biases on q, k and v. The stored weights are the same, so logits differ by the order of sums only."""
    fused, separate = (
        exports(case, "unequal:2", weight_format=weight_format, fuse=fuse, verify=fuse) for fuse in (True, False)
    )
    assert products(separate) - products(fused) == 2 * LAYERS
    assert (ir_logits(fused, ids) - ir_logits(separate, ids)).abs().max() < 1e-5
    sizes = [(folder / "openvino_model.bin").stat().st_size for folder in (fused, separate)]
    assert abs(sizes[0] - sizes[1]) < 1000  # constants of shapes


def graph(biases: Sequence[bool], inputs: Sequence[int], widths: Sequence[int] = (4, 2, 2)) -> Any:
    """Products x Wᵀ (+ b) of matrices w0, w1, …, each of one of two inputs; their order is that of the results."""
    values = [ops.parameter([1, -1, 8], ov.Type.f32, name=f"x{index}") for index in range(2)]
    places, results = [], []
    for index, (biased, source, rows) in enumerate(zip(biases, inputs, widths, strict=True)):
        places.append(ops.parameter([rows, 8], ov.Type.f32, name=f"w{index}"))
        result = ops.matmul(values[source], places[-1], False, True)
        bias = ops.constant(np.arange(1, rows + 1, dtype=np.float32).reshape(1, 1, rows) * 10**index)
        results.append(ops.result(ops.add(result, bias) if biased else result))
    return ov.Model(results, [*values, *places])


def matrices(schemes: Sequence[Scheme] = (FP32,) * 3) -> dict[str, Compressed]:
    draw = np.random.default_rng(1)
    values = [draw.standard_normal((rows, 8)).astype(np.float32) for rows in (4, 2, 2)]
    pairs = zip(values, schemes, strict=True)
    return {f"w{n}": Compressed(scheme, matrix.shape, ov.Tensor(matrix)) for n, (matrix, scheme) in enumerate(pairs)}


@pytest.mark.parametrize(
    ("biases", "inputs", "schemes", "stacked"),
    [
        ([False] * 3, [0, 0, 0], [FP32] * 3, {"w0+w1+w2"}),
        ([True] * 3, [0, 0, 0], [FP32] * 3, {"w0+w1+w2"}),
        ([False] * 3, [0, 1, 0], [FP32] * 3, {"w0+w2", "w1"}),
        ([True, False, False], [0, 0, 0], [FP32] * 3, {"w0", "w1+w2"}),
        ([False] * 3, [0, 0, 0], [FP32, INT8, FP32], {"w0+w2", "w1"}),
        ([False] * 3, [0, 1, 1], [FP32, INT8, FP32], {"w0", "w1", "w2"}),
    ],
    ids=["alike", "biased", "another-input", "one-bias", "another-scheme", "nothing-alike"],
)
def test_only_equal_products_are_fused(biases: list[bool], inputs: list[int], schemes: list[Scheme], stacked: set[str]) -> None:
    """The fused graph, given the stacked matrices as inputs, computes what the other one does, result by result."""
    model, weights = graph(biases, inputs), matrices(schemes)
    plain = {name: matrix.codes.data.copy() for name, matrix in weights.items()}
    given = {f"x{n}": np.random.default_rng(2 + n).standard_normal((1, 3, 8)).astype(np.float32) for n in range(2)}
    expected = run(model, {**given, **plain})
    actual = fuse(model, [["w0", "w1", "w2", "not there"]], weights)
    assert {name.removeprefix(".").removesuffix(".weight") for name in actual} == stacked
    for mine, theirs in zip(run(model, {**given, **{n: m.codes.data for n, m in actual.items()}}), expected, strict=True):
        assert np.allclose(mine, theirs, atol=1e-5)
    assert weights.keys() == plain.keys() and all(np.array_equal(weights[n].codes.data, plain[n]) for n in plain)


def run(model: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    compiled = ov.Core().compile_model(model.clone(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    order = [given[node.friendly_name] for node in model.get_parameters()]
    return [value.copy() for value in request.infer(order).values()]
