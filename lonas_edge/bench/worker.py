"""An arm in a process of its own: its threads, its memory and its faults are nobody else's.

The process ends with its parent and leaves Ctrl-C to it; on Linux it is also the first to go when memory runs out. What its
libraries print goes to a file.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self, TypeVar

from lonas_edge.bench.arms import Arm
from lonas_edge.bench.damage import reason
from lonas_edge.bench.runners import ENGINES
from lonas_edge.bench.timing import Timing
from lonas_edge.errors import LonasEdgeError, one_line, out_of_memory
from lonas_edge.processes import end_with_parent, peak_memory, starting_process

T = TypeVar("T")

_KILLED = 9  # SIGKILL, which Windows has no name for
_GRACE_SECONDS = 10
_OUT_OF_MEMORY = "its process was killed; most likely memory ran out"
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Placement:
    """Where an arm computes.

    Attributes:
        cores: Logical processors that the process may use.
        threads: Threads of its computations.
    """

    cores: tuple[int, ...]
    threads: int


class ArmFailedError(LonasEdgeError):
    """An arm could not be loaded or run; the message says why."""


class ArmProcess:
    """The parent's side. Leaving its `with` block ends the process."""

    def __init__(self, arm: Arm, placement: Placement):
        """Start the process; it loads the arm.

        Args:
            arm: What it runs.
            placement: Where.
        """
        self.arm, self._busy = arm, True
        self._log = _log_file()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, arm, placement, self._log, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with starting_process(), _environment(arm.environment):
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    def wait_loaded(self) -> float:
        """Wait until it is loaded.

        Returns:
            Seconds that loading took, imports not counted.

        Raises:
            ArmFailedError: If it cannot be.
        """
        seconds: float = self._answer()
        return seconds

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Timing:
        """Generate once.

        Args:
            prompts: Token ids [batch, prompt_len].
            new_tokens: How many to generate.

        Returns:
            What it took.

        Raises:
            ArmFailedError: If it failed; `alive` says whether the process can go on.
        """
        timing: Timing = self._ask("run", prompts, new_tokens)
        return timing

    def facts(self) -> dict[str, Any]:
        """Fields of `Facts` that its runner knows; `ArmFailedError` where it fails."""
        found: dict[str, Any] = self._ask("facts")
        return found

    def peak(self) -> dict[str, Any]:
        """Its peak memory so far, and what compiling it once more gives; likewise. Nothing can be run afterwards."""
        found: dict[str, Any] = self._ask("peak")
        return found

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def _ask(self, *message: Any) -> Any:
        self._busy = True
        try:
            self._pipe.send(message)
        except OSError:
            raise self._died() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, content = _next(self._pipe)
        except (EOFError, OSError):
            raise self._died() from None
        self._busy = False
        if kind == "failed":
            raise ArmFailedError(f"{self.arm.name}: {content}")
        return content

    def _died(self) -> ArmFailedError:
        self._process.join(10)
        code = self._process.exitcode
        if code == -_KILLED:
            return ArmFailedError(f"{self.arm.name}: {_OUT_OF_MEMORY}")
        said = _last_words(self._log) or "it said nothing"
        return ArmFailedError(f"{self.arm.name}: its process ended (exit code {code}): {said}")

    def __enter__(self) -> Self:
        """Nothing to do: the process runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._pipe.close()
        _end(self._process, 0 if self._busy else _GRACE_SECONDS)
        self._log.unlink(missing_ok=True)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables for a process that is started in the block: what its C library reads, it reads before Python runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own: its memory goes with it, and what it prints is not seen.

    Args:
        function: A function of a module.
        *arguments: What it takes.

    Returns:
        What it returns.

    Raises:
        LonasEdgeError: If it failed; the message says why.
    """
    context, log = multiprocessing.get_context("spawn"), _log_file()
    pipe, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, log, os.getpid(), function, arguments))
    grace = 0
    try:
        with starting_process():
            process.start()
        theirs.close()
        failed, found = _next(pipe)
        grace = _GRACE_SECONDS
    except EOFError:
        raise LonasEdgeError(_last_words(log) or _OUT_OF_MEMORY) from None
    finally:
        _end(process, grace)
        log.unlink(missing_ok=True)
    if failed:
        raise LonasEdgeError(found)
    result: T = found
    return result


def _next(pipe: Connection) -> Any:
    """What comes next: waited for a second at a time, so that a Ctrl-C is heeded that came when the wait had just begun."""
    while not pipe.poll(1):
        pass
    return pipe.recv()


def _call(pipe: Connection, log: Path, parent: int, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    _detach(log, parent)
    try:
        pipe.send((False, function(*arguments)))
    except LonasEdgeError as error:
        pipe.send((True, str(error)))
    except BaseException as error:
        pipe.send((True, _told(error)))


def _end(process: BaseProcess, grace: float) -> None:
    """By itself, where it is not in the middle of something; by force after so many seconds, or at Ctrl-C."""
    if process.pid is None:
        return  # it could not be started
    try:
        process.join(grace)
    finally:
        process.kill()
        process.join()


def _log_file() -> Path:
    handle, name = tempfile.mkstemp(prefix="lonas-edge-bench-", suffix=".log")
    os.close(handle)
    return Path(name)


def _last_words(log: Path) -> str:
    """What it said last: of a traceback, the error."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return one_line(lines[-1] if lines else "")


def _serve(pipe: Connection, arm: Arm, placement: Placement, log: Path, parent: int) -> None:
    """The process: load the arm, then run what is asked for, until the parent goes."""
    _detach(log, parent)
    _place(placement)
    engine = ENGINES[arm.kind]
    try:
        for module in engine.modules:  # so that loading is the model's alone
            importlib.import_module(module)
        start = time.perf_counter()
        runner = engine.runner(arm, placement.threads)
        pipe.send(("loaded", time.perf_counter() - start))
    except BaseException as error:
        pipe.send(("failed", _not_loaded(arm, error)))
        return
    answers: dict[str, Callable[..., Any]] = {
        "run": runner.run,
        "facts": runner.facts,
        "peak": lambda: {"peak_memory_bytes": peak_memory(), **runner.compiled()},
    }
    while True:
        try:
            verb, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((verb, answers[verb](*arguments)))
        except BaseException as error:
            pipe.send(("failed", _told(error)))


def _detach(log: Path, parent: int) -> None:
    """Print to a file, and go when the parent goes: on other systems than Linux, the closed pipe says so."""
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
    if hasattr(process, "cpu_affinity"):  # macOS has none
        process.cpu_affinity(list(placement.cores))
    os.environ["OMP_NUM_THREADS"] = str(placement.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _not_loaded(arm: Arm, error: BaseException) -> str:
    """The file that is damaged, where one is; the directory or file that was to be loaded, where not."""
    told = _told(error)
    if out_of_memory(error):
        return told
    return ENGINES[arm.kind].damage(arm) or f"{arm.path}: cannot be run: {told}"


def _told(error: BaseException) -> str:
    traceback.print_exception(error)  # into the log
    if out_of_memory(error):
        return f"not enough memory ({reason(error) or type(error).__name__})"
    return f"{type(error).__name__}: {reason(error)}"
