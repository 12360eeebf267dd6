"""One OpenVINO Core in a process: with two, Ctrl-C ended it with a segmentation fault."""

import ast
import subprocess
import sys
from pathlib import Path

import lonas_edge

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
