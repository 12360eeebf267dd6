"""The end of a command: any error becomes one message on standard error; --debug shows the traceback, too.

Imports the standard library only: Ctrl-C may come, or memory may run out, while the rest is imported.
"""

import atexit
import errno
import logging
import mmap
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning, chain, escaped, one_line, out_of_memory

DEBUG = "LONAS_EDGE_DEBUG"  # an environment variable; 1 does what --debug does
_INTERRUPTED = "interrupted: nothing was written"
_NEEDS_LESS = {
    "compress": "Shorter examples in --data need less memory",
    "export": "--stage checkpoint or --no-verify needs less memory",
    "bench": "Fewer --arms, a smaller --batch-size or a shorter --prompt-len needs less memory",
    "eval": "A smaller --batch-size, --num-beams 1 or --torch-dtype bf16 needs less memory",
    "search": "a smaller --num-prompts needs less memory",
    "train": "A smaller --micro-batch-size, a shorter --max-length or --gradient-checkpointing needs less memory",
}
_NEARLY = 0.9
_RESERVE = 2**24  # bytes of address space, never touched and released before an error is reported, which needs memory
_DISK = re.compile(r"no space left on device|read-only file system|disk quota exceeded|file write failed", re.IGNORECASE)
_LIBRARIES = {  # read by libraries when they are imported, here and in child processes
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


@dataclass
class Now:
    """The state of the command: its name, the current step as the progress bar shows it, --debug, whether Ctrl-C came."""

    command: str | None = None
    doing: str | None = None
    debug: bool = False
    interrupted: bool = False


now = Now()


def guarded(run: Callable[[], int | None]) -> None:
    """Run a command, report its error, and exit: 0 done, 1 failed, 2 wrong usage."""
    now.command, now.doing, now.interrupted = None, None, False
    now.debug = os.environ.get(DEBUG, "0") not in ("", "0")
    _usable_streams()
    reserve = None
    with suppress(OSError):
        reserve = mmap.mmap(-1, _RESERVE)
    with _signals(), warnings.catch_warnings(), _own_output():
        try:
            code = run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) or ended.code is None else _say(str(ended.code))
        except BaseException as error:
            if reserve is not None:
                reserve.close()
            code = _report(error)
        code = _flush(code or 0)
    sys.exit(code)


def quiet() -> None:
    """Silence warnings and progress bars of libraries."""
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=LonasEdgeWarning)
        warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {escaped(str(message))}", file=sys.stderr)


def _report(error: BaseException) -> int:
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage: click's own errors
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):  # the reader of standard output has closed it
        return 1
    try:
        if now.debug:
            traceback.print_exception(error)
        return _say(_message(error))
    except MemoryError:
        atexit.register(os._exit, 1)
        return _say("error: out of memory")


def _message(error: BaseException) -> str:
    interrupted = now.interrupted or any(isinstance(each, KeyboardInterrupt) for each in chain(error))
    if isinstance(error, LonasEdgeError) and (not interrupted or "interrupted" in str(error)):
        return f"error: {escaped(str(error))}"
    if interrupted:
        return _INTERRUPTED
    doing = f"lonas-edge{f' {now.command}' if now.command else ''} ({one_line(now.doing or 'starting')})"
    of_environment = _of_environment(error, doing) or _of_environment(error.__cause__, doing)
    if out_of_memory(error) or (of_environment is None and _at_the_limit()):
        if _at_the_limit():
            atexit.register(os._exit, 1)  # before exit handlers of libraries, which would fail without memory
        needs_less = _NEEDS_LESS.get(now.command or "", "Close other programs")
        return f"error: out of memory in {doing}. {needs_less}; or raise the limit (ulimit -v), if there is one."
    return of_environment or _unexpected(error)


def _at_the_limit() -> bool:
    """Whether this process used nearly all the memory it may: libraries then fail with arbitrary messages."""
    with suppress(ImportError, OSError, AttributeError):
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        peak = re.search(r"VmPeak:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
        return limit != resource.RLIM_INFINITY and peak is not None and int(peak[1]) * 1024 > _NEARLY * limit
    return False


def _of_environment(error: BaseException | None, doing: str) -> str | None:
    """The message of an error of the disk, of permissions or of a missing file; None for any other."""
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or error.errno in errno.errorcode):
        names = [one_line(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return f"error: {': '.join([*names, one_line(error.strerror)])}" + ("" if names else f", in {doing}")
    if _DISK.search(str(error)):
        return f"error: writing failed in {doing}: {one_line(str(error))}"
    return None


def _unexpected(error: BaseException) -> str:
    ours = f"{os.sep}lonas_edge{os.sep}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if ours in frame.filename]
    where = f" (in lonas_edge/{frames[-1].filename.rpartition(ours)[2]}:{frames[-1].lineno})" if frames else ""
    return (
        f"error: unexpected: {type(error).__name__}: {one_line(str(error))}{where}. This is a bug of lonas-edge; please report "
        "it with the command and the output of `lonas-edge --version`. `lonas-edge --debug …` shows the traceback."
    )


def _say(line: str) -> int:
    """Print to standard error, in red on a terminal; return exit code 1."""
    try:
        red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        print(f"\x1b[31m{line}\x1b[0m" if red else line, file=sys.stderr, flush=True)
    except (OSError, ValueError, MemoryError):
        with suppress(OSError):
            os.write(2, line.encode(errors="replace") + b"\n")
    return 1


def _flush(code: int) -> int:
    """Write what was printed now, while a failure can still be reported."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE and not code:
            _say(f"error: standard output: {error.strerror}")
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at Python's end
        return 1
    return code


def _usable_streams() -> None:
    """Keep the descriptor of a closed stream from becoming one of our files, and let a terminal lack characters."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ:
        _utf8_files()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _utf8_files() -> None:
    """Read and write UTF-8 in files and pipes: Python takes the code page of Windows, which lacks most characters."""
    for stream, encoding in ((sys.stdin, "utf-8-sig"), (sys.stdout, "utf-8"), (sys.stderr, "utf-8")):
        if hasattr(stream, "reconfigure") and not stream.isatty():
            stream.reconfigure(encoding=encoding)


@contextmanager
def _own_output() -> Iterator[None]:
    """Keep what libraries in C or Rust print out of standard output; --debug sends it to standard error."""
    ours, kept = sys.stdout, os.dup(1)
    try:
        same = ours.fileno() == 1
    except (OSError, ValueError):  # replaced by something without a descriptor
        same = False
    if same:
        ours.flush()
        sys.stdout = os.fdopen(os.dup(kept), "w", 1 if ours.line_buffering else -1, ours.encoding, ours.errors)
    elsewhere = os.dup(2) if now.debug else os.open(os.devnull, os.O_WRONLY)
    os.dup2(elsewhere, 1)
    os.close(elsewhere)
    try:
        yield
    finally:
        if same:
            with suppress(OSError, ValueError):
                sys.stdout.close()
            sys.stdout = ours
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def line_editing() -> Iterator[None]:
    """Let `input` write to descriptor 1 itself, without which it edits no lines; see `_own_output`."""
    ours, elsewhere = sys.stdout, os.dup(1)
    ours.flush()
    os.dup2(ours.fileno(), 1)
    sys.stdout = sys.__stdout__ or ours
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = ours
        os.dup2(elsewhere, 1)
        os.close(elsewhere)


@contextmanager
def _signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM, and drop errors that no code can handle; restore everything at the end."""
    unraisable, in_thread = sys.unraisablehook, threading.excepthook
    numbers = [signal.SIGINT, *([] if "RANK" in os.environ else [signal.SIGTERM])]  # torchrun ends its workers itself
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {each: signal.getsignal(each) for each in numbers if signal.getsignal(each) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, _interrupt)
    if not now.debug:
        sys.unraisablehook, threading.excepthook = _swallowed, lambda _: None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook, threading.excepthook = unraisable, in_thread
        logging.disable(logging.NOTSET)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    now.interrupted = True
    raise KeyboardInterrupt


def _swallowed(unraisable: Any) -> None:
    """Repeat a Ctrl-C that came in a destructor or a callback, where Python cannot raise it."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, _raise_in_main_thread).start()


def _raise_in_main_thread() -> None:
    main = threading.main_thread().ident
    if main is None or sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:
        signal.pthread_kill(main, signal.SIGINT)  # ends a blocking call, too


atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
