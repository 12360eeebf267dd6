"""Stacked compression against `nncf.compress_weights` on complete models: the same constants, bit for bit."""

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
from lonas_edge.ir.compress import Compressed, compress_matrices, compress_matrix
from lonas_edge.ir.schemes import Scheme

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
IDS = [f"{scheme.weight_format.name}{scheme.group_size or ''}" for scheme in STOCK]
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
    """By the code under test; it needs a model's tensors and their shapes only."""
    shapes = {name: matrix.shape for name, matrix in matrices.items()}
    model: Any = SimpleNamespace(tensor=lambda name: torch.from_numpy(matrices[name]), shapes=shapes)
    return dict(compress_matrices(model, dict.fromkeys(matrices, scheme)))


def stock(matrices: dict[str, np.ndarray], scheme: Scheme) -> dict[str, Any]:
    """The constants of one model that multiplies by every matrix, compressed by NNCF, by name."""
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
def test_equals_nncf_on_a_model(
    matrices: dict[str, np.ndarray], scheme: Scheme, stack_elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compress, "STACK_ELEMENTS", stack_elements)
    monkeypatch.setattr(compress, "MAX_STACKS", 10**9)  # the line above alone decides
    expected = stock(matrices, scheme)
    actual = compressed(matrices, scheme)
    assert actual.keys() == matrices.keys()
    for name, matrix in matrices.items():
        assert actual[name].shape == matrix.shape
        parts = {name: actual[name].codes, f"{name}/zero_point": actual[name].zero_point, f"{name}/scale": actual[name].scale}
        for part, tensor in parts.items():
            assert (tensor is None) == (part not in expected), part
            if tensor is None:
                continue
            assert tensor.get_element_type() == expected[part].get_element_type(), part
            assert list(tensor.get_shape()) == list(expected[part].shape), part
            assert np.array_equal(values(tensor), values(expected[part])), part
        assert 0 < actual[name].restore(matrix)[1] <= scheme.weight_format.tolerance
        assert actual[name].restore(-matrix)[1] > scheme.weight_format.tolerance


@pytest.fixture(scope="session")
def exported(exports: Callable[..., Path]) -> Callable[..., Path]:
    """Directories of one tiny model of unequal widths, exported in a format."""
    return lambda name, group=None: exports("llama-tied", "unequal:1", weight_format=name, group_size=group, verify=False)


@SCHEMES
def test_equals_nncf_on_an_ir(scheme: Scheme, exported: Callable[..., Path], ids: torch.Tensor):
    """`export` and NNCF on the fp32 IR give the same constants, and the same logits to the last bit."""
    uncompressed = ov.Core().read_model(exported("fp32") / "openvino_model.xml")
    stock_model = nncf.compress_weights(uncompressed, **{**STOCK[scheme], "all_layers": None})
    weight_format, asked = scheme.weight_format.name, PER_CHANNEL if scheme.group_size == PER_CHANNEL else None
    found_model = ov.Core().read_model(exported(weight_format, asked) / "openvino_model.xml")
    expected, actual = constants(stock_model), constants(found_model)
    names = [name for name in expected if ".weight" in name]
    # 3 layers of 5 matrices (q, k and v are one) and the embedding, each with codes, scale and perhaps a zero point
    outer = FORMATS[scheme.weight_format.outer or weight_format]
    inner, embedding = (2 + bool(part.zero_point_bits) for part in (scheme.weight_format, outer))
    assert len(names) == 3 * 5 * inner + embedding
    for name in names:
        assert actual[name].get_element_type() == expected[name].get_element_type(), name
        assert np.array_equal(values(actual[name]), values(expected[name])), name
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


@pytest.mark.parametrize(("value", "overflowed"), [(65504.0, False), (7e4, True)])
def test_weights_beyond_fp16(value: float, overflowed: bool) -> None:
    """65504 is the largest number of fp16."""
    matrix = np.array([[value, 1.0]], np.float32)
    assert compress_matrix(matrix, Scheme(FORMATS["fp16"])).overflowed is overflowed
    assert not compress_matrix(matrix, Scheme(FORMATS["fp32"])).overflowed
