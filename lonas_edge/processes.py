"""This process, its parent and its children: Ctrl-C, memory, and ending together."""

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's malloc.h
_STATUS = Path("/proc/self/status")


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    deferred: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: deferred.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if deferred:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def starting_process() -> Iterator[None]:
    """Start a process in this block: it never gets Ctrl-C, because its parent ends it, and does not run the main script.

    A terminal sends Ctrl-C to all processes, and Python prints a traceback for it even while it imports. A spawned process
    imports the main script, which would call us again where it has no `if __name__ == "__main__"`.
    """
    with _without_main_module(), _interrupts_blocked():
        yield


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main script from `multiprocessing`, which reads it when a process starts."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Defer Ctrl-C, and block it in processes that the block starts."""
    block = getattr(signal, "pthread_sigmask", None)
    if block is None:  # Windows
        with interrupts_deferred():
            yield
        return
    from multiprocessing import resource_tracker  # unblocks the signal when it starts, with the first process that is spawned

    with interrupts_deferred():
        resource_tracker.ensure_running()
        before = block(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            block(signal.SIG_SETMASK, before)


def end_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends; `parent` is its id, taken before this process started."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this process asked
        os._exit(1)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory for the next tensors of the block, and return it at its end, on Linux with glibc. Not to be nested.

    What an earlier block left is freed first: the Trainer (transformers 5.5) refers to itself, and so holds its models.

    glibc returns every tensor above 32 MB at once, and the kernel clears each page of the next one: a recovery of 0.5 billion
    parameters spent half of its time there (docs/benchmarks/larger.md).
    """
    gc.collect()
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for name, value in ((_MMAP_MAX, 65_536), (_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**26)):  # as it sets them itself
            libc.mallopt(name, value)
        libc.malloc_trim(0)


def peak_memory() -> int:
    """Largest resident memory of this process so far in bytes, memory-mapped pages included."""
    if _STATUS.exists():  # Linux, whose ru_maxrss starts with the parent's
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def peak_memory_of_children() -> int | None:
    """Largest resident memory of the child processes that have ended, in bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
