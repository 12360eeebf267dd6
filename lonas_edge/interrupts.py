"""Ctrl-C where it must wait: while files are exchanged, and while a process starts, whose parent alone it is for."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs; it comes at the end of it."""
    if threading.current_thread() is not threading.main_thread():  # no other is interrupted
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def starting() -> Iterator[None]:
    """Hold Ctrl-C back while the block starts a process, which never gets it: its parent ends it.

    A terminal sends Ctrl-C to all processes, and Python tells of it with a traceback while it imports. One that is started
    here has the signal blocked from its first instruction on.
    """
    block = getattr(signal, "pthread_sigmask", None)
    if block is None:  # Windows
        with held():
            yield
        return
    from multiprocessing import resource_tracker  # unblocks the signal when it starts, with the first process that is spawned

    with held():
        resource_tracker.ensure_running()
        before = block(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            block(signal.SIG_SETMASK, before)
