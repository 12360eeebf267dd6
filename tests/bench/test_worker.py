"""Spawned processes: damaged files, calls apart, kills, and other systems than Linux."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from systems import KILL
from tiny_models import VOCAB, TinySource

from lonas_edge.bench import worker
from lonas_edge.bench.damaged_files import find_damaged_file, reason
from lonas_edge.bench.measure import PromptSource
from lonas_edge.bench.variants import Case, Variant
from lonas_edge.bench.worker import Placement, VariantFailedError, VariantProcess, apart
from lonas_edge.errors import LonasEdgeError

PLACE = Placement((0,), 1)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("openvino_model.xml", b"<net></net>"),
        ("openvino_tokenizer.xml", b"<"),
        ("openvino_detokenizer.bin", b""),
        ("generation_config.json", b"{"),
        ("tokenizer_config.json", b"\xff"),
    ],
)
def test_a_damaged_file_of_an_ir_is_named(copy: Path, file: str, content: bytes) -> None:
    assert find_damaged_file(Variant("subnet", "ir", copy)) is None
    (copy / file).write_bytes(content)
    damaged = find_damaged_file(Variant("subnet", "ir", copy))
    assert damaged and "\n" not in damaged
    assert damaged.startswith(f"{copy / file.replace('.bin', '.xml')}: damaged: ")


def test_a_damaged_adapter_is_named(source: TinySource, tmp_path: Path) -> None:
    own = source.copied_to(tmp_path)
    os.truncate(own.adapter / "adapter_model.safetensors", 1000)
    adapter = Variant("lora", "torch", own.base, adapter=own.adapter)
    file = own.adapter / "adapter_model.safetensors"
    assert worker._describe_load_error(adapter, RuntimeError("header")).startswith(f"{file}: damaged: ")
    assert worker._describe_load_error(adapter, MemoryError()) == "not enough memory (MemoryError)"


def test_reason_of_an_error() -> None:
    """OpenVINO's last line is the cause."""
    error = RuntimeError("Exception from src/core.cpp:132:\nException from src/a.cpp:5:\nNo such property\x1b\n\n")
    assert reason(error) == "No such property\\x1b"
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(ValueError()) == ""


def test_a_call_apart(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert apart(os.getpid) != os.getpid()
    apart(os.system, "echo hello; echo hello >&2")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(LonasEdgeError, match=f"FileNotFoundError: .*{tmp_path.name}/nothing"):
        apart(os.listdir, tmp_path / "nothing")
    with pytest.raises(LonasEdgeError, match="most likely memory ran out"):
        apart(signal.raise_signal, KILL)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.5, 2])
def test_ctrl_c_ends_a_call_apart(seconds: float) -> None:
    """While the process starts, while it imports, and while it works."""
    code = f"""
import multiprocessing, os, signal, threading, time
from lonas_edge.bench import worker
worker._GRACE_SECONDS = 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    worker.apart(time.sleep, 100_000)
except KeyboardInterrupt:
    print("interrupted", multiprocessing.active_children())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "interrupted []\n", "")


@pytest.mark.slow
def test_a_killed_process(int8: Path) -> None:
    with VariantProcess(Variant("subnet", "ir", int8, "CPU"), PLACE) as process:
        process.wait_loaded()
        assert len(process.run(PromptSource(VOCAB, 0).next(Case(8, 4)), 4).token_times) == 4
        assert process.pid
        psutil.Process(process.pid).kill()
        with pytest.raises(VariantFailedError, match="subnet: its process was killed; most likely memory ran out"):
            process.run([[1, 2]], 4)
        assert not process.alive


@pytest.mark.parametrize("affinity", [True, False])
def test_a_process_is_set_up_on_other_systems(tmp_path: Path, affinity: bool) -> None:
    """As on Windows (with affinity) and macOS (without): neither prctl nor /proc is used."""
    (tmp_path / "log").touch()
    code = f"""
import ctypes, os, psutil, signal, sys
from pathlib import Path
from lonas_edge.bench import worker
sys.platform, ctypes.CDLL = "other", None
Path.write_text = None
if not {affinity}:
    del psutil.Process.cpu_affinity
worker._detach(Path({str(tmp_path / "log")!r}), -1)
worker._place(worker.Placement((0,), 3))
print(os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT).name, os.sched_getaffinity(0) == {{0}})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    only_one = affinity or os.sched_getaffinity(0) == {0}
    assert (tmp_path / "log").read_text().split() == ["3", "SIG_IGN", str(only_one)]
