"""Outputs of IRs: those of stock exporters by name; others are refused."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir.core import open_model


def saved(folder: Path, *outputs: str) -> Path:
    """An IR that adds 1, 2, … to its input, an output for each name."""
    given = ops.parameter([-1], np.float32, name="x")
    results = [ops.result(ops.add(given, np.float32(number))) for number in range(1, len(outputs) + 1)]
    for result, name in zip(results, outputs, strict=True):
        result.input_value(0).get_tensor().set_names({name})
    given.output(0).get_tensor().set_names({"x"})
    ov.save_model(ov.Model(results, [given]), folder / "openvino_model.xml")
    return folder / "openvino_model.xml"


@pytest.mark.parametrize("outputs", [("logits",), ("last_hidden_state",), ("logits", "present")])
def test_stock_outputs(outputs: tuple[str, ...], tmp_path: Path) -> None:
    infer = open_model(saved(tmp_path, *outputs), "CPU", {})
    assert infer({"x": np.array([3.0], np.float32), "unknown": np.zeros(2)}).tolist() == [4]


def test_another_output(tmp_path: Path) -> None:
    """As `optimum-cli export openvino --library sentence_transformers` writes."""
    path = saved(tmp_path, "token_embeddings", "sentence_embedding")
    with pytest.raises(
        LonasEdgeError, match=r"openvino_model\.xml: expected an output logits or last_hidden_state, found token_"
    ):
        open_model(path, "CPU", {})
