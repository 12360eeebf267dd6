"""An arm in a process of its own: its threads, its memory and its faults are nobody else's.

The process ends with its parent, is the first to go when memory runs out, and leaves Ctrl-C to its parent. What its libraries
print goes to a file.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from lonas_edge.bench import runners
from lonas_edge.bench.arms import Arm
from lonas_edge.bench.timing import Timing
from lonas_edge.errors import LonasEdgeError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE_SECONDS = 10


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
        self.arm, self.load_seconds = arm, 0.0
        self._log = tempfile.NamedTemporaryFile(prefix="lonas-edge-bench-", suffix=".log")  # noqa: SIM115 - lives as long as self
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, arm, placement, self._log.name, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    def wait_loaded(self) -> None:
        """Wait until it is loaded.

        Raises:
            ArmFailedError: If it cannot be.
        """
        self.load_seconds = self._answer()

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
        return self._ask("run", prompts, new_tokens)

    def facts(self) -> dict[str, Any]:
        """Its peak memory so far and what its runner knows; nothing can be run afterwards.

        Returns:
            Fields of `Facts`.

        Raises:
            ArmFailedError: If it failed.
        """
        return self._ask("facts")

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.is_alive()

    def _ask(self, *message: Any) -> Any:
        try:
            self._pipe.send(message)
        except OSError:
            raise self._died() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "failed":
            raise ArmFailedError(f"{self.arm.name}: {content}")
        return content

    def _died(self) -> ArmFailedError:
        self._process.join(10)
        code = self._process.exitcode
        said = Path(self._log.name).read_text(errors="replace").strip()[-500:]
        if code == -signal.SIGKILL:
            return ArmFailedError(f"{self.arm.name}: its process was killed; most likely memory ran out")
        return ArmFailedError(f"{self.arm.name}: its process ended (exit code {code}): {said or 'it said nothing'}")

    def __enter__(self) -> Self:
        """Nothing to do: the process runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: by itself, where it is not in the middle of something."""
        self._pipe.close()
        self._process.join(_GRACE_SECONDS)
        self._process.kill()
        self._process.join()
        self._log.close()


def _serve(pipe: Connection, arm: Arm, placement: Placement, log: str, parent: int) -> None:
    """The process: load the arm, then run what is asked for, until the parent goes."""
    _set_up(placement, log, parent)
    try:
        _import(arm)
        start = time.perf_counter()
        runner = runners.load(arm, placement.threads)
        pipe.send(("loaded", time.perf_counter() - start))
    except BaseException as error:
        pipe.send(("failed", _told(error)))
        return
    while True:
        try:
            verb, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if verb == "run":
                pipe.send(("timing", runner.run(*arguments)))
            else:
                peak = peak_memory()
                pipe.send(("facts", {"peak_memory_bytes": peak, **runner.facts()}))
        except BaseException as error:
            pipe.send(("failed", _told(error)))


def _set_up(placement: Placement, log: str, parent: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        Path("/proc/self/oom_score_adj").write_text("1000")
        os.sched_setaffinity(0, placement.cores)
    os.environ["OMP_NUM_THREADS"] = str(placement.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _import(arm: Arm) -> None:
    """Import what the arm needs, so that loading is the model's alone."""
    if arm.kind == "ir":
        import openvino_genai  # noqa: F401
    elif arm.kind == "torch":
        import transformers  # noqa: F401
    else:
        import llama_cpp  # noqa: F401


def _told(error: BaseException) -> str:
    traceback.print_exception(error)  # into the log
    first = str(error).strip().splitlines()
    short = first[-1] if first and "openvino" in str(error).lower() else (first[0] if first else "")
    if isinstance(error, MemoryError) or "alloc" in str(error).lower():
        return f"not enough memory ({short or type(error).__name__})"
    return f"{type(error).__name__}: {short}"


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes, memory-mapped file pages included (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
