"""Ctrl-C while a process starts or a report is written; memory."""

import gc
import multiprocessing
import resource
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lonas_edge import processes
from lonas_edge.processes import freed_memory_kept, interrupts_deferred, peak_memory, peak_memory_of_children, starting_process

# a fresh process, where no library has changed the signal handlers
INTERRUPTED = """
import signal
from lonas_edge.processes import {context}

signal.signal(signal.SIGINT, signal.default_int_handler)
done = []
try:
    with {context}():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
except KeyboardInterrupt:
    done.append(2)
try:
    signal.raise_signal(signal.SIGINT)  # as before
except KeyboardInterrupt:
    done.append(3)
print(done)
"""


@pytest.mark.parametrize("context", ["interrupts_deferred", "starting_process"])
def test_ctrl_c_comes_at_the_end_of_the_block(context: str) -> None:
    program = INTERRUPTED.format(context=context)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[1, 2, 3]\n", "")


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    """As scripts are that call `lonas_edge.compress`, which starts processes."""
    script = tmp_path / "script.py"
    call = "print(run_in_process(math.factorial, 5))"
    script.write_text(f"import math\nfrom lonas_edge.bench.worker import run_in_process\nprint('run')\n{call}\n")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("run\n120\n", 0)


def test_a_started_process_never_gets_ctrl_c() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with starting_process():
        process.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert process.pid is not None
    for _ in range(5):
        subprocess.run(["kill", "-INT", str(process.pid)], check=True)
        time.sleep(0.02)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("context", [interrupts_deferred, starting_process])
def test_other_threads_are_not_interrupted(context: type) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: context().__enter__()).result() is None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_freed_memory_is_kept_within_the_block() -> None:
    size = 100_000_000

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(b"1" * size)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = size // resource.getpagesize()
    assert faults() > pages
    before = resident()
    with freed_memory_kept():
        assert faults() > pages
        assert faults() < pages / 10
        assert resident() > before + size
    assert resident() < before + size / 10
    assert faults() > pages


def test_what_refers_to_itself_is_freed_first() -> None:
    """As a Trainer does; the collector runs when it wants."""
    cycle: Any = type("Cycle", (), {})()
    cycle.itself = cycle
    gone = weakref.ref(cycle)
    gc.disable()
    try:
        del cycle
        assert gone()
        with freed_memory_kept():
            assert not gone()
    finally:
        gc.enable()


def test_peak_memory_on_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = bytearray(50_000_000)
    assert peak_memory() > len(allocated)
    monkeypatch.setattr(processes, "_STATUS", Path("/nowhere"))
    monkeypatch.setattr(sys, "platform", "darwin")  # counts in bytes
    assert peak_memory() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory_of_children() == resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1, peak_wset=77)))
    assert peak_memory() == 77
    assert peak_memory_of_children() is None
