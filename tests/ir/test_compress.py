"""Stacked compression against `nncf.compress_weights` on whole models: the same constants, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nncf
import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from openvino_models import constants, model_logits

from lonas_edge.formats import FORMATS, PER_CHANNEL
from lonas_edge.ir import compress
from lonas_edge.ir.compress import Compressed, Scheme, compress_matrices

GROUP = 32
INT8, INT4 = Scheme(FORMATS["int8"]), Scheme(FORMATS["int4"], GROUP)
MODES = nncf.CompressWeightsMode
STOCK = {
    INT8: {"mode": MODES.INT8_ASYM},
    INT4: {"mode": MODES.INT4_ASYM, "group_size": GROUP, "all_layers": True},
    Scheme(FORMATS["int8_sym"]): {"mode": MODES.INT8_SYM},
    Scheme(FORMATS["int4"], PER_CHANNEL): {"mode": MODES.INT4_ASYM, "group_size": -1, "all_layers": True},
    Scheme(FORMATS["int4_sym"], GROUP): {"mode": MODES.INT4_SYM, "group_size": GROUP, "all_layers": True},
}
IDS = [f"{one.weight_format.name}{one.group_size or ''}" for one in STOCK]
SCHEMES = pytest.mark.parametrize("scheme", STOCK, ids=IDS)
# rows x columns. 96 columns are 3 groups, so that 5 or 7 rows have an odd number of them: the next matrix of a stack starts
# in the middle of a byte where zero points are packed two a byte. 128 columns open a second stack.
SHAPES = [(5, 96), (7, 96), (4, 96), (9, 128), (1, 96), (3, 128)]


@pytest.fixture
def matrices() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        f"m{index}": (generator.standard_normal(shape) * 10.0 ** generator.integers(-3, 3) + 0.1).astype(np.float32)
        for index, shape in enumerate(SHAPES)
    }


def compressed(matrices: dict[str, np.ndarray], scheme: Scheme) -> dict[str, Compressed]:
    """By the code under test; all it asks of a model is its tensors and their shapes."""
    shapes = {name: matrix.shape for name, matrix in matrices.items()}
    model: Any = SimpleNamespace(tensor=lambda name: torch.from_numpy(matrices[name]), shapes=shapes)
    return dict(compress_matrices(model, dict.fromkeys(matrices, scheme)))


def stock(matrices: dict[str, np.ndarray], scheme: Scheme) -> dict[str, Any]:
    """The constants of one model that multiplies by every matrix, compressed whole by NNCF, by name."""
    inputs, products = [], []
    for name, matrix in matrices.items():
        inputs.append(ops.parameter([-1, matrix.shape[1]], np.float32))
        products.append(ops.matmul(inputs[-1], ops.constant(matrix, name=name), False, True))
    return constants(nncf.compress_weights(ov.Model(products, inputs), **STOCK[scheme]))


def values(constant: Any) -> np.ndarray:
    """Values of a constant or tensor, unpacked, by openvino itself."""
    if isinstance(constant, ov.Tensor):
        constant = ops.constant(constant, shared_memory=True)
    return constant.get_data(dtype=np.float32) if constant.get_element_type().bitwidth < 16 else constant.data


@pytest.mark.parametrize("stack_elements", [1, 1500, 2**24], ids=["one", "some", "all"])
@SCHEMES
def test_equals_nncf_on_a_whole_model(
    matrices: dict[str, np.ndarray], scheme: Scheme, stack_elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compress, "STACK_ELEMENTS", stack_elements)
    monkeypatch.setattr(compress, "MAX_STACKS", 10**9)  # the line above alone decides
    expected = stock(matrices, scheme)
    found = compressed(matrices, scheme)
    assert found.keys() == matrices.keys()
    for name, matrix in matrices.items():
        assert found[name].shape == matrix.shape
        parts = {name: found[name].codes, f"{name}/zero_point": found[name].zero_point, f"{name}/scale": found[name].scale}
        for part, tensor in parts.items():
            assert (tensor is None) == (part not in expected), part
            if tensor is None:
                continue
            assert tensor.get_element_type() == expected[part].get_element_type(), part
            assert list(tensor.get_shape()) == list(expected[part].shape), part
            assert np.array_equal(values(tensor), values(expected[part])), part


# the widest gap between two values: asymmetric as a share of the range (255 or 15 steps); symmetric as a share of the larger
# side (128 or 8 steps, and one more at the end of the other side)
GAPS = {"int8": 1 / 255, "int4": 1 / 15, "int8_sym": 2 / 128, "int4_sym": 2 / 8}


@SCHEMES
def test_the_graph_gives_the_matrix_back(matrices: dict[str, np.ndarray], scheme: Scheme):
    """The subgraph, computed in fp32, is within a step of the matrix: codes, zero points and scales belong together."""
    found, weight_format = compressed(matrices, scheme), scheme.weight_format
    for name, matrix in matrices.items():
        result = evaluate(found[name].node(name))
        columns = matrix.shape[1] if scheme.group_size in (None, PER_CHANNEL) else scheme.group_size
        grouped = matrix.reshape(len(matrix), -1, columns)
        low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
        range_ = high - low if weight_format.zero_point_bits else np.maximum(high, -low)
        step = range_ * GAPS[weight_format.name]
        error = np.abs(result - matrix).reshape(grouped.shape).max(-1)
        # half a step from rounding, up to half a step more from rounding the zero point; the scale is rounded to fp16
        assert (error <= 1.1 * step + 1e-6).all(), (name, (error / step).max())
        assert np.abs(result - matrix).max() > 0
        restored, units = found[name].restored(matrix)
        assert np.allclose(restored, result, rtol=1e-3, atol=1e-7)  # the plugin multiplies in fp16
        assert 0 < units <= weight_format.tolerance
        assert found[name].restored(-matrix)[1] > weight_format.tolerance


def evaluate(node: Any) -> np.ndarray:
    """The value of a subgraph of constants, in fp32."""
    anything = ops.parameter([1], np.float32)
    model = ov.Model([ops.add(node, anything)], [anything])
    request = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return next(iter(request.infer([np.zeros(1, np.float32)]).values()))


def test_fp16_constants_stay_fp16_on_disk(matrices: dict[str, np.ndarray], tmp_path: Path):
    found = compressed(matrices, Scheme(FORMATS["fp16"]))
    inputs = [ops.parameter([-1, matrix.shape[1]], np.float32, name=f"in{name}") for name, matrix in matrices.items()]
    products = [ops.matmul(value, found[name].node(name), False, True) for value, name in zip(inputs, matrices, strict=True)]
    ov.save_model(ov.Model(products, inputs), tmp_path / "model.xml", compress_to_fp16=False)
    stored = constants(ov.Core().read_model(tmp_path / "model.xml"))
    for name, matrix in matrices.items():
        assert stored[name].get_element_type() == ov.Type.f16
        assert np.array_equal(stored[name].data, matrix.astype(np.float16))


@pytest.fixture(scope="session")
def exported(exports: Callable[..., Path]) -> Callable[..., Path]:
    """Directories of one tiny model of unequal widths, exported in a format."""
    return lambda name, group=None: exports("llama-tied", "unequal:1", weight_format=name, group_size=group, verify=False)


@SCHEMES
def test_equals_nncf_on_a_whole_ir(scheme: Scheme, exported: Callable[..., Path], ids: torch.Tensor):
    """What `export` writes is what NNCF makes of the fp32 IR: same constants, and the same answers to the last bit."""
    whole = ov.Core().read_model(exported("fp32") / "openvino_model.xml")
    stock_model = nncf.compress_weights(whole, **{**STOCK[scheme], "all_layers": None})
    weight_format, asked = scheme.weight_format.name, PER_CHANNEL if scheme.group_size == PER_CHANNEL else None
    found_model = ov.Core().read_model(exported(weight_format, asked) / "openvino_model.xml")
    expected, found = constants(stock_model), constants(found_model)
    names = [name for name in expected if ".weight" in name]
    # 3 layers of 5 matrices (q, k and v are one) and the embedding, each with codes, scale and perhaps a zero point
    outer = FORMATS[scheme.weight_format.outer or weight_format]
    inner, embedding = (2 + bool(one.zero_point_bits) for one in (scheme.weight_format, outer))
    assert len(names) == 3 * 5 * inner + embedding
    for name in names:
        assert found[name].get_element_type() == expected[name].get_element_type(), name
        assert np.array_equal(values(found[name]), values(expected[name])), name
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    assert torch.equal(model_logits(found_model, ids, properties), model_logits(stock_model, ids, properties))


def test_fp16_weights_are_not_widened_when_the_ir_is_compiled(exported: Callable[..., Path]):
    """Stock fp16 IRs mark the conversion of each matrix as decompression. Unmarked, the CPU plugin folds it: fp32 in memory."""
    model = ov.Core().read_model(exported("fp16") / "openvino_model.xml")
    conversions = {
        node.input_value(0).get_node().friendly_name: "decompression_0" in node.get_rt_info()
        for node in model.get_ops()
        if node.get_type_name() == "Convert" and node.input_value(0).get_node().friendly_name.endswith(".weight")
    }
    assert len(conversions) == 3 * 5 + 1
    assert all(conversions.values())
