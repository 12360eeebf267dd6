"""Spawn processes: one per variant, with its own threads, memory and failures, and one per isolated call.

A process ends with its parent, ignores Ctrl-C, and writes its output to a log file. On Linux a variant's process is the first
to be killed when memory runs out.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeVar

from lonas_edge.bench.runners import RUNNERS
from lonas_edge.bench.variants import Placement, Timing, Variant
from lonas_edge.errors import LonasEdgeError, one_line, out_of_memory
from lonas_edge.processes import end_with_parent, peak_memory, starting_process

T = TypeVar("T")

_KILLED = 9  # SIGKILL; Windows has no name for it
_GRACE_SECONDS = 10
_OUT_OF_MEMORY = "its process was killed; most likely memory ran out"


class VariantFailedError(LonasEdgeError):
    """A variant could not be loaded or run; the message states why."""


class _Child:
    """The parent's side of a spawned process with a pipe and a log file."""

    def __init__(self, target: Callable[..., None], *arguments: Any, daemon: bool):
        """Start `target(pipe, log, parent, *arguments)`; a daemon cannot start processes itself."""
        handle, name = tempfile.mkstemp(prefix="lonas-edge-bench-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, self._log, os.getpid(), *arguments), daemon=daemon)
        try:
            with starting_process():
                self.process.start()
        except BaseException:
            self.close(0)
            raise
        theirs.close()

    def receive(self) -> Any:
        """Wait for the next message; EOFError or OSError if the process ended. Polling keeps Ctrl-C responsive."""
        while not self.pipe.poll(1):
            pass
        return self.pipe.recv()

    def last_line(self) -> str:
        """Return the last line that it printed: the error of a traceback."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return one_line(lines[-1] if lines else "")

    def close(self, grace: float) -> None:
        """Wait for its end for `grace` seconds, then kill it."""
        self.pipe.close()
        try:
            if self.process.pid is not None:
                self.process.join(grace)
        finally:
            if self.process.pid is not None:
                self.process.kill()
                self.process.join()
            self._log.unlink(missing_ok=True)


class VariantProcess:
    """The parent's side of a variant's process. Leaving its `with` block ends the process."""

    def __init__(self, variant: Variant, placement: Placement):
        """Start the process, which loads the variant."""
        self.variant, self._busy = variant, True
        self._child = _Child(_serve, variant, placement, daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._child.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        return self._child.process.is_alive()

    def wait_loaded(self) -> float:
        """Wait until the variant is loaded; return the seconds it took, without imports."""
        seconds: float = self._receive()
        return seconds

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        """Generate `new_tokens` after each prompt, [batch, prompt_len]. After an error, `alive` shows whether it can go on."""
        timing: Timing = self._ask("run", prompts, new_tokens)
        return timing

    def facts(self) -> dict[str, Any]:
        """Return fields of `Facts`: its peak memory so far, and what its runner knows."""
        facts: dict[str, Any] = self._ask("facts")
        return facts

    def _ask(self, *message: Any) -> Any:
        self._busy = True
        try:
            self._child.pipe.send(message)
        except OSError:
            raise self._died() from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            failed, content = self._child.receive()
        except (EOFError, OSError):
            raise self._died() from None
        self._busy = False
        if failed:
            raise VariantFailedError(f"{self.variant.name}: {content}")
        return content

    def _died(self) -> VariantFailedError:
        self._child.process.join(_GRACE_SECONDS)
        code = self._child.process.exitcode
        if code == -_KILLED:
            return VariantFailedError(f"{self.variant.name}: {_OUT_OF_MEMORY}")
        output = self._child.last_line() or "no output"
        return VariantFailedError(f"{self.variant.name}: its process ended (exit code {code}): {output}")

    def __enter__(self) -> Self:
        """Return itself: the process runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._child.close(0 if self._busy else _GRACE_SECONDS)


def run_in_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a module-level function in a new process, which frees its memory and hides its output; raise its error."""
    child = _Child(_call, function, arguments, daemon=False)
    grace = 0
    try:
        failed, result = child.receive()
        grace = _GRACE_SECONDS
    except (EOFError, OSError):
        raise LonasEdgeError(child.last_line() or _OUT_OF_MEMORY) from None
    finally:
        child.close(grace)
    if failed:
        raise LonasEdgeError(result)
    value: T = result
    return value


def _call(pipe: Connection, log: Path, parent: int, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    _detach(log, parent)
    try:
        pipe.send((False, function(*arguments)))
    except LonasEdgeError as error:
        pipe.send((True, str(error)))
    except BaseException as error:
        pipe.send((True, _describe(error)))


def _serve(pipe: Connection, log: Path, parent: int, variant: Variant, placement: Placement) -> None:
    """Load the variant, then answer requests until the parent closes the pipe."""
    _detach(log, parent)
    _place(placement)
    runner_class = RUNNERS[variant.kind]
    try:
        for module in runner_class.modules:  # imports do not count as loading
            importlib.import_module(module)
        start = time.perf_counter()
        runner = runner_class(variant, placement.threads)
        pipe.send((False, time.perf_counter() - start))
    except BaseException as error:
        message = _describe(error)
        pipe.send((True, message if out_of_memory(error) else f"{variant.path}: cannot be run: {message}"))
        return
    requests: dict[str, Callable[..., Any]] = {
        "run": runner.run,
        "facts": lambda: {"peak_memory_bytes": peak_memory(), **runner.facts()},
    }
    while True:
        try:
            request, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((False, requests[request](*arguments)))
        except BaseException as error:
            pipe.send((True, _describe(error)))


def _detach(log: Path, parent: int) -> None:
    """Redirect the output to a file, and end with the parent (elsewhere than on Linux, by the closed pipe)."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    if sys.platform == "linux":
        end_with_parent(parent)


def _place(placement: Placement) -> None:
    import psutil

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        process.cpu_affinity(list(placement.cores))
    os.environ["OMP_NUM_THREADS"] = str(placement.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _describe(error: BaseException) -> str:
    traceback.print_exception(error)  # into the log
    if out_of_memory(error):
        return f"not enough memory ({_reason(error) or type(error).__name__})"
    return f"{type(error).__name__}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Return the line of an error message that names the cause: OpenVINO's last line, the first line of others."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    from_openvino = "openvino" in str(error).lower() or "Exception from" in str(error)
    return one_line(lines[-1 if from_openvino else 0]) if lines else ""
