"""One OpenVINO Core in a process: with two, Ctrl-C ended it with a segmentation fault."""

import ast
import subprocess
import sys
from pathlib import Path

import lonas_edge

PACKAGE = Path(lonas_edge.__file__).parent
MODELS_COME_AND_GO = """
import os, signal
import numpy as np, openvino as ov
from openvino import opset13 as ops
from lonas_edge.ir.infer import open_model

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
    print("told")
"""


def test_ctrl_c_is_told_after_models_came_and_went() -> None:
    ran = subprocess.run([sys.executable, "-c", MODELS_COME_AND_GO], capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (0, "told\n"), ran.stderr


def test_nobody_makes_another() -> None:
    found = {
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Core"
    }
    assert found == {"core.py"}
