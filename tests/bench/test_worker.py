"""Spawned processes: calls, kills, and other systems than Linux."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from systems import KILL
from tiny_models import VOCAB

from lonas_edge.bench.measure import PromptSource
from lonas_edge.bench.variants import Case, Placement, Variant
from lonas_edge.bench.worker import VariantFailedError, VariantProcess, run_in_process
from lonas_edge.errors import LonasEdgeError

PLACE = Placement((0,), 1)


def test_a_call_run_in_process(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_in_process(os.getpid) != os.getpid()
    run_in_process(os.system, "echo hello; echo hello >&2")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(LonasEdgeError, match=f"FileNotFoundError: .*{tmp_path.name}/nothing"):
        run_in_process(os.listdir, tmp_path / "nothing")
    with pytest.raises(LonasEdgeError, match="most likely memory ran out"):
        run_in_process(signal.raise_signal, KILL)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.5, 2])
def test_ctrl_c_ends_a_call_run_in_process(seconds: float) -> None:
    """While the process starts, while it imports, and while it works."""
    code = f"""
import multiprocessing, os, signal, threading, time
from lonas_edge.bench import worker
worker._GRACE_SECONDS = 0.1
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    worker.run_in_process(time.sleep, 100_000)
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
from lonas_edge.bench import variants, worker
sys.platform, ctypes.CDLL = "other", None
Path.write_text = None
if not {affinity}:
    del psutil.Process.cpu_affinity
worker._detach(Path({str(tmp_path / "log")!r}), -1)
worker._place(variants.Placement((0,), 3))
print(os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT).name, os.sched_getaffinity(0) == {{0}})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    only_one = affinity or os.sched_getaffinity(0) == {0}
    assert (tmp_path / "log").read_text().split() == ["3", "SIG_IGN", str(only_one)]
