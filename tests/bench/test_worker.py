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
