"""The end of a command: any error becomes one message on standard error; --debug shows the traceback, too.

Imports the standard library only: Ctrl-C may come, or memory may run out, while the rest is imported.
"""

import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning, UsageError, chain, escaped, one_line, out_of_memory

DEBUG = "LONAS_EDGE_DEBUG"  # an environment variable; 1 does what --debug does
_NEEDS_LESS = {
    "compress": "Shorter examples in --data need less memory.",
    "export": "--stage checkpoint or --no-verify needs less memory.",
    "bench": "Fewer --variants or a shorter --prompt-len needs less memory.",
    "eval": "--protocol option-text needs less memory.",
    "search": "A smaller --num-samples needs less memory.",
    "train": "A smaller --micro-batch-size, a shorter --max-length or --gradient-checkpointing needs less memory.",
}
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
    """The state of the command: its name, the current step as the progress bar shows it, --debug."""

    command: str | None = None
    doing: str | None = None
    debug: bool = False


now = Now()


def guarded(run: Callable[[], int | None]) -> None:
    """Run a command, report its error, and exit: 0 done, 1 failed, 2 wrong usage."""
    now.command, now.doing = None, None
    now.debug = os.environ.get(DEBUG, "0") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters
    if "RANK" not in os.environ:  # torchrun ends its workers itself
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = run() or 0
        sys.stdout.flush()  # while a failure can still be reported
    except SystemExit:
        raise
    except BaseException as error:
        code = _report(error)
    sys.exit(code)


def quiet() -> None:
    """Silence warnings and progress bars of libraries."""
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    logging.disable(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=LonasEdgeWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {escaped(str(message))}", file=sys.stderr)


def _report(error: BaseException) -> int:
    """Print one line for an error; return the exit code."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # wrong usage: click's own errors
        error.show()
        return int(error.exit_code)
    if isinstance(error, BrokenPipeError):  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    if now.debug:
        traceback.print_exception(error)
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    line = _message(error)
    print(f"\x1b[31m{line}\x1b[0m" if red else line, file=sys.stderr, flush=True)
    return 2 if isinstance(error, UsageError) else 1


def _message(error: BaseException) -> str:
    if isinstance(error, LonasEdgeError):
        return f"error: {escaped(str(error))}"
    if any(isinstance(each, KeyboardInterrupt) for each in chain(error)):
        return "interrupted: nothing was written"
    doing = f"lonas-edge{f' {now.command}' if now.command else ''} ({one_line(now.doing or 'starting')})"
    if out_of_memory(error):
        return f"error: out of memory in {doing}. {_NEEDS_LESS.get(now.command or '', 'Close other programs.')}"
    for each in (error, error.__cause__):
        if isinstance(each, OSError) and each.strerror:
            names = [one_line(os.fsdecode(name)) for name in (each.filename, each.filename2) if isinstance(name, str | bytes)]
            return f"error: {': '.join([*names, one_line(each.strerror)])}" + ("" if names else f", in {doing}")
    if _DISK.search(str(error)):
        return f"error: writing failed in {doing}: {one_line(str(error))}"
    ours = f"{os.sep}lonas_edge{os.sep}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if ours in frame.filename]
    where = f" (in lonas_edge/{frames[-1].filename.rpartition(ours)[2]}:{frames[-1].lineno})" if frames else ""
    return (
        f"error: unexpected: {type(error).__name__}: {one_line(str(error))}{where}. This is a bug of lonas-edge; please report "
        "it with the command and the output of `lonas-edge --version`. `lonas-edge --debug …` shows the traceback."
    )
