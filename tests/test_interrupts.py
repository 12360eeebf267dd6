"""Ctrl-C while a process is started."""

import multiprocessing
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lonas_edge.interrupts import starting

# in a process of its own: the tests' has run code of many libraries before
INTERRUPTED = """
import signal
from lonas_edge.interrupts import {way}

done = []
try:
    with {way}():
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


@pytest.mark.parametrize("way", ["held", "starting"])
def test_it_comes_at_the_end_of_the_block(way: str) -> None:
    program = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + INTERRUPTED.format(way=way)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[1, 2, 3]\n", "")


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_process_that_is_started_never_gets_it(way: str) -> None:
    process = multiprocessing.get_context(way).Process(target=time.sleep, args=(60,))
    with starting():
        process.start()
    assert process.pid is not None
    for _ in range(10):  # in each moment of its start
        subprocess.run(["kill", "-INT", str(process.pid)], check=True)
        time.sleep(0.05)
    assert process.is_alive()
    process.terminate()  # which it does get
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_it_is_blocked_for_the_block_alone() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with starting():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_another_thread_is_not_interrupted() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: starting().__enter__()).result() is None
