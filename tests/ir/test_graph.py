"""The conversion process: its graph, its end when the parent is killed, its failures."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openvino_models import ov
from safetensors.torch import load_file, save_file
from tiny_models import TinyModels

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS
from lonas_edge.ir import MODEL
from lonas_edge.ir.compress import Compressed
from lonas_edge.ir.graph import Conversion, GraphConversion
from lonas_edge.ir.schemes import Scheme
from lonas_edge.ir.write import fill_graph


@pytest.fixture(params=["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def start_method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forked (Linux) and spawned (elsewhere); `test_export_families` compares their IRs."""
    if request.param == "fork" and sys.platform != "linux":
        pytest.skip("processes are forked on Linux only")
    monkeypatch.setenv("LONAS_EDGE_SPAWN", "1" if request.param == "spawn" else "")
    return str(request.param)


def job_of(base: Path, folder: Path) -> Conversion:
    """The conversion of a base, without tokenizer, into `folder`."""
    vectors = {name: tensor for name, tensor in load_file(base / "model.safetensors").items() if tensor.dim() == 1}
    save_file(vectors, folder / "vectors.safetensors")
    (folder / "graph").mkdir()
    config = json.loads((base / "config.json").read_text())
    return Conversion(config, folder / "vectors.safetensors", folder / "graph" / MODEL, None, folder)


def test_a_matrix_without_an_input_is_refused(tiny_models: TinyModels, tmp_path: Path):
    name, shape = "model.layers.0.mlp.gate_proj.weight", [96, 64]
    wrong = ov.opset13.parameter(shape, ov.Type.f32, name=name)
    value = ov.opset13.parameter([1, 64], ov.Type.f32)
    product = ov.opset13.matmul(value, wrong, False, True)
    ov.save_model(ov.Model([product], [wrong, value]), tmp_path / MODEL, compress_to_fp16=False)
    narrower = Compressed(Scheme(FORMATS["fp32"]), (64, 64), ov.Tensor(ov.Type.f32, [64, 64]))
    with pytest.raises(LonasEdgeError, match=r"gate_proj\.weight \[64, 64\]"):
        fill_graph(ov.Core().read_model(tmp_path / MODEL), {name: narrower})
    with pytest.raises(LonasEdgeError, match=r"up_proj\.weight"):
        fill_graph(ov.Core().read_model(tmp_path / MODEL), {"model.layers.0.mlp.up_proj.weight": narrower})


def test_an_error_of_the_conversion_is_reported(tiny_models: TinyModels, tmp_path: Path):
    job = job_of(tiny_models.base("llama"), tmp_path)
    job.vectors.unlink()
    with (
        GraphConversion(job) as conversion,
        pytest.raises(LonasEdgeError, match=r"conversion to OpenVINO failed[\s\S]*vectors\.safetensors"),
    ):
        conversion.wait()
    assert not job.graph.exists()


def test_a_killed_conversion_is_reported(tiny_models: TinyModels, tmp_path: Path):
    """Killed by the system (out of memory, say): the parent neither hangs nor goes on."""
    job = job_of(tiny_models.base("llama"), tmp_path)
    with GraphConversion(job) as conversion:
        conversion._process.kill()
        with pytest.raises(LonasEdgeError, match=r"conversion to OpenVINO failed .*-9"):
            conversion.wait()
    assert not job.graph.exists()


_PARENT = """
import os, pickle, signal, sys, time
from lonas_edge.ir.graph import GraphConversion
job = pickle.loads(bytes.fromhex(sys.argv[1]))
conversion = GraphConversion(job)
while not conversion._log.exists():  # it has begun
    time.sleep(0.001)
print(conversion._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_when_its_parent_is_killed(start_method: str, tiny_models: TinyModels, tmp_path: Path):
    job = job_of(tiny_models.base("llama"), tmp_path)
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, pickle.dumps(job).hex()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.wait()
    assert parent.returncode == -signal.SIGKILL
    while is_running(child):  # pytest's own time limit ends a wait in vain
        time.sleep(0.1)
    assert not job.graph.exists()  # it ended before its work was done, not because it was


def is_running(pid: int) -> bool:
    """Whether a process of this id runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
