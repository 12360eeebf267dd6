"""Ctrl-C while a report is written."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from lonas_edge.bench.run import uninterrupted


def test_ctrl_c_waits_for_the_report() -> None:
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_a_thread_writes_it_too() -> None:
    """Only the main thread may set what a signal does."""

    def write() -> bool:
        with uninterrupted():
            return True

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(write).result()
