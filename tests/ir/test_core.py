"""One OpenVINO Core in a process: with two, Ctrl-C ended it with a segmentation fault. Outputs of IRs by name."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

import lonas_edge
from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir.core import open_model

PACKAGE = Path(lonas_edge.__file__).parent
DELETED_MODELS = """
import os, signal
import numpy as np, openvino as ov
from openvino import opset13 as ops
from lonas_edge.ir.core import open_model

values = ops.parameter([1, 2], np.float32, "values")
model = ov.Model([ops.relu(values)], [values])
model.outputs[0].set_names({"logits"})
first = open_model(model, "CPU", {})
second = open_model(model, "CPU", {})
del first
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_models_were_deleted() -> None:
    ran = subprocess.run([sys.executable, "-c", DELETED_MODELS], capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (0, "interrupted\n"), ran.stderr


def test_there_is_one_core() -> None:
    actual = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Core"
    }
    assert actual == {"core.py"}


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
