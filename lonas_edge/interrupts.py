"""Ctrl-C while a process is started: it waits until the process is there, and is for the parent alone."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back while the block starts a process; it comes at the end of the block.

    A terminal sends it to all processes. One that is started here never gets it (it has the signal blocked from its first
    instruction on), so that it does not tell of it while it imports; its parent ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    block = getattr(signal, "pthread_sigmask", None)  # Windows has none
    mask = block(signal.SIG_BLOCK, {signal.SIGINT}) if block else None
    try:
        yield
    finally:
        if block:
            block(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
