"""How a command ends: whatever went wrong is one error on standard error; a traceback is shown with --debug only.

Imports nothing but the standard library: Ctrl-C may come while the rest is imported.
"""

import atexit
import codecs
import errno
import logging
import mmap
import os
import re
import signal
import sys
import tempfile
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
_TYPER_INTERRUPTED = 130  # what typer makes of Ctrl-C
_NEEDS_LESS = {
    "export": "--stage checkpoint needs less than an IR, and --no-verify less than a comparison",
    "bench": "Fewer --arms, a smaller --batch-size or a shorter --prompt-len need less",
    "eval": "A smaller --batch-size, --num-beams 1 or --torch-dtype bf16 needs less",
    "search": "--torch-dtype bf16 or a smaller --val-set-size needs less",
    "train": "A smaller --micro-batch-size, a shorter --max-length or --gradient-checkpointing needs less",
}
_NO_MEMORY = "error: out of memory, and too little of it is left to say where"
_NEARLY = 0.9
_RESERVE = 2**24  # bytes of address space, never touched: given back before an error is told, which needs some
_DISK = re.compile(r"no space left on device|read-only file system|disk quota exceeded|file write failed", re.IGNORECASE)
_LIBRARIES = {  # read by libraries when they are imported, here and in processes started from here
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
_SPELLED = str.maketrans({"“": '"', "”": '"', "’": "'", "±": "+-", "–": "-", "…": "...", "×": "x"})


@dataclass
class Now:
    """What is going on, for whoever must tell of it.

    Attributes:
        command: The command's name.
        doing: What it is doing, as the progress bar shows it.
        debug: Whether tracebacks are shown.
        interrupted: Whether Ctrl-C or SIGTERM came.
    """

    command: str | None = None
    doing: str | None = None
    debug: bool = False
    interrupted: bool = False


now = Now()


def guarded(run: Callable[[], Any]) -> None:
    """Run something that may go wrong, and exit.

    Args:
        run: Returns an exit code, or None; may exit by itself.

    Raises:
        SystemExit: With 0 where all is done, 1 where not, 2 after wrong usage.
    """
    now.__init__(debug=os.environ.get(DEBUG, "0") not in ("", "0"))  # type: ignore[misc]
    _usable_streams()
    reserve = _reserved()
    with _hooks(), warnings.catch_warnings(), _own_output():
        try:
            code = run()
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            if reserve is not None:
                reserve.close()
            code = _told(error)
        if code == _TYPER_INTERRUPTED:
            code = _say(_INTERRUPTED)
        code = _flushed(code if isinstance(code, int) else 0 if code is None else _say(str(code)))
    sys.exit(code)


def quiet() -> None:
    """What the libraries tell by the way is not for users: an error says all."""
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=LonasEdgeWarning)
        warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {escaped(str(message))}", file=sys.stderr)


def _reserved() -> mmap.mmap | None:
    with suppress(OSError):
        return mmap.mmap(-1, _RESERVE)
    return None


def _told(error: BaseException) -> int:
    """Tell of what ended a command; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # a reader that has enough
        return 1
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage: click's own errors
        error.show()
        return int(error.exit_code)
    try:
        if now.debug:
            traceback.print_exception(error)
        return _say(_line(error))
    except MemoryError:
        atexit.register(os._exit, 1)
        return _say(_NO_MEMORY)


def _line(error: BaseException) -> str:
    interrupted = now.interrupted or any(isinstance(one, KeyboardInterrupt) for one in chain(error))
    if isinstance(error, LonasEdgeError) and (not interrupted or "interrupted" in str(error)):
        return f"error: {escaped(str(error))}"
    if interrupted:
        return _INTERRUPTED
    of_environment = _of_environment(error) or _of_environment(error.__cause__)
    if out_of_memory(error) or (of_environment is None and _at_the_limit()):
        if _at_the_limit():
            atexit.register(os._exit, 1)  # before what libraries registered, which has no memory either and says so
        needs_less = _NEEDS_LESS.get(now.command or "", "Close other programs")
        return f"error: out of memory while {_doing()}. {needs_less}; or raise the limit (ulimit -v), if there is one."
    return of_environment or _unexpected(error)


def _at_the_limit() -> bool:
    """Whether this process took nearly all the memory it may: what libraries say then is anything."""
    with suppress(ImportError, OSError, StopIteration):
        import resource  # Windows has none

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        peak = next(
            line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmPeak")
        )
        return limit != resource.RLIM_INFINITY and int(peak.split()[1]) * 1024 > _NEARLY * limit
    return False


def _doing() -> str:
    command = f"lonas-edge {now.command}" if now.command else "lonas-edge"
    return f"{command} was at: {one_line(now.doing)}" if now.doing else f"{command} was starting"


def _of_environment(error: BaseException | None) -> str | None:
    """What the disk, a right or a missing file did; None for what is nobody's fault but ours."""
    if isinstance(error, OSError) and error.errno == errno.ENOENT and "temporary directory" in str(error):
        return f"error: {one_line(error.strerror or '')}: none can be written to. TMPDIR can name another."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        return f"error: while {_doing()}: {error.strerror}, on the disk of the output, of standard output or of {_scratch()}."
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or error.errno in errno.errorcode):
        names = [one_line(os.fsdecode(n)) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)]
        return f"error: {': '.join([*names, error.strerror])}" + ("" if names else f" (while {_doing()})")
    if _DISK.search(str(error)):
        return f"error: writing failed while {_doing()}: {one_line(str(error))}"
    return None


def _scratch() -> str:
    with suppress(OSError):
        return tempfile.gettempdir()
    return "temporary files"


def _unexpected(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}lonas_edge{os.sep}" in frame.filename and frame.filename != __file__]
    place = "".join(f" (in {_module(frame.filename)}:{frame.lineno})" for frame in (ours or frames)[-1:])
    return (
        f"error: unexpected: {type(error).__name__}: {one_line(str(error))}{place}. Please report it to the maintainers of "
        "lonas-edge, with what `lonas-edge --version` says and the command; `lonas-edge --debug …` shows the traceback."
    )


def _module(file: str) -> str:
    _, found, inside = file.rpartition(f"{os.sep}lonas_edge{os.sep}")
    return f"lonas_edge.{inside.removesuffix('.py').replace(os.sep, '.')}" if found else Path(file).name


def _say(line: str) -> int:
    """On standard error, in red where that is a terminal, by whatever means are left; returns exit code 1."""
    try:
        if sys.stderr is not None and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            print(f"\x1b[31m{line}\x1b[0m", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError, MemoryError):
        with suppress(OSError):
            os.write(2, line.encode(errors="replace") + b"\n")
    return 1


def _flushed(code: int) -> int:
    """What was printed is written now, while it can still be told that it cannot be."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:  # of a reader that has enough, nothing is told
            _say(f"error: standard output: {error.strerror}")
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at Python's end
        return 1
    return code


def _usable_streams() -> None:
    """A closed standard stream must not become a file of ours; a character that a terminal lacks must not end a command."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    codecs.register_error("lonas-edge", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lonas-edge")


@contextmanager
def _own_output() -> Iterator[None]:
    """Standard output has what the command prints; what libraries in C or Rust print there is for --debug (standard error).

    tokenizers 0.22 does, over a vocabulary with holes, 140,000 characters in the middle of a JSON document.
    """
    ours = sys.stdout
    try:
        same = ours is not None and ours.fileno() == 1
    except (OSError, ValueError):  # replaced by something without a descriptor
        same = False
    kept = os.dup(1)
    if same:
        ours.flush()
        buffering = 1 if ours.line_buffering else -1
        sys.stdout = os.fdopen(os.dup(kept), "w", buffering, ours.encoding, ours.errors)
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


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: the nearest ASCII, or the character's escape."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_SPELLED)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


@contextmanager
def _hooks() -> Iterator[None]:
    """Signals raise KeyboardInterrupt; what no code can handle is not told; all is as before in the end."""
    unraisable, in_thread = sys.unraisablehook, threading.excepthook
    before = {number: signal.signal(number, _interrupt) for number in _signals()}
    if not now.debug:
        sys.unraisablehook, threading.excepthook = _swallowed, lambda _: None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook, threading.excepthook = unraisable, in_thread
        logging.disable(logging.NOTSET)


def _signals() -> list[signal.Signals]:
    """Those that are handled; a launcher such as torchrun ends its workers itself, and Ctrl-C may be ignored on purpose."""
    if threading.current_thread() is not threading.main_thread():
        return []
    wanted = [signal.SIGINT] if "RANK" in os.environ else [signal.SIGINT, signal.SIGTERM]
    return [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    now.interrupted = True
    raise KeyboardInterrupt


def _swallowed(unraisable: Any) -> None:
    """Ctrl-C that came in a destructor or a callback, where Python cannot raise it: it comes once more."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, _raise_in_main_thread).start()


def _raise_in_main_thread() -> None:
    """There the signal ends what waits, too: `raise_signal` would give it to the thread that calls it."""
    main = threading.main_thread().ident
    if main is None or sys.platform == "win32":  # which has signals without threads
        signal.raise_signal(signal.SIGINT)
    else:
        signal.pthread_kill(main, signal.SIGINT)


atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
