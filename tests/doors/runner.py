"""Runs the command line in a forked child: what a command imports is imported once, so a case costs what the command does.

The parent must have one thread and must have computed nothing: OpenMP and OpenVINO do not survive a fork. Whatever computes
(the command, and what judges it) is run in a child.
"""

import contextlib
import gc
import importlib
import os
import resource
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MEMORY = 4 * 2**30  # beyond what is mapped at the start; a device that never ends is read until then
_HEAVY = (
    "lonas_edge.cli",
    "lonas_edge.bench.run",
    "lonas_edge.bench.tune",
    "lonas_edge.bench.plots",
    "lonas_edge.evaluate.openvino_lm",
    "lonas_edge.evaluate.run",
    "lonas_edge.evaluate.torch_lm",
    "lonas_edge.exporting.export",
    "lonas_edge.search.accuracy",
    "lonas_edge.search.compressed",
    "lonas_edge.search.run",
    "lonas_edge.training.train",
    "openvino_genai",
    "openvino_tokenizers",
)


@dataclass(frozen=True)
class Ran:
    """How a child ended: its exit code, minus the signal that ended it, or None where its time was up."""

    code: int | None
    out: str
    err: str
    seconds: float


def import_all() -> None:
    """Import what the commands import. Nothing is computed, on one thread.

    Raises:
        RuntimeError: If an import has started a thread.
    """
    for name in _HEAVY:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    _import_what_transformers_loads_late()
    gc.collect()
    gc.freeze()


def _import_what_transformers_loads_late() -> None:
    from transformers import (  # noqa: F401
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
    )
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.bloom import modeling_bloom  # noqa: F401
    from transformers.models.gemma import modeling_gemma  # noqa: F401
    from transformers.models.gpt_neox import modeling_gpt_neox  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.phi3 import modeling_phi3  # noqa: F401


def run_forked(work: Callable[[], int | None], folder: Path, logs: Path, seconds: float) -> Ran:
    """Run something in a child with limits of time and memory.

    Args:
        work: What is run; its value is the exit code.
        folder: The child's working directory.
        logs: An existing directory for what it prints.
        seconds: The limit, of processor time and by the clock.

    Returns:
        How it ended.
    """
    out, err = logs / "out", logs / "err"
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(work, folder, out, err, seconds)
    code = _ended(pid, start + seconds)
    with contextlib.suppress(OSError):  # what it started and left: all are in its group
        os.killpg(pid, signal.SIGKILL)
    return Ran(code, _text(out), _text(err), time.monotonic() - start)


def _text(path: Path) -> str:
    return path.read_bytes()[:2_000_000].decode(errors="replace")


def _child(work: Callable[[], int | None], folder: Path, out: Path, err: Path, seconds: float) -> None:
    code = 1
    try:
        os.setsid()
        for path, stream in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _limit(seconds)
        os.chdir(folder)
        code = work() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _limit(seconds: float) -> None:
    cpu = int(seconds) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def _ended(pid: int, deadline: float) -> int | None:
    pause = 0.002
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGXCPU else code
        time.sleep(pause)
        pause = min(0.05, pause * 1.3)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def run_command(arguments: list[str], case: Path, seconds: float) -> Ran:
    """Run `lonas-edge` in a case's directory `in`, with a home, a cache and temporary files of its own beside it.

    Args:
        arguments: The command line without the program's name.
        case: The case's directory.
        seconds: The limit.

    Returns:
        How it ended.
    """
    for name in ("tmp", "home", "logs", "cache"):
        (case / name).mkdir(exist_ok=True)

    def work() -> None:
        os.environ |= {"HOME": str(case / "home"), "TMPDIR": str(case / "tmp"), "XDG_CACHE_HOME": str(case / "cache")}
        tempfile.tempdir = None
        sys.argv = ["lonas-edge", *arguments]
        from lonas_edge.cli import main

        main()

    return run_forked(work, case / "in", case / "logs", seconds)


def snapshot(case: Path) -> dict[str, tuple[object, ...]]:
    """What lies in a case's directories: kind, size and time of change by path. Locks come and go and are left out."""
    found = {}
    for root in ("in", "tmp", "outside"):
        for folder, names, files in os.walk(case / root):
            for name in (*names, *files):
                path = Path(folder, name)
                status = path.lstat()
                kind = stat.S_IFMT(status.st_mode)
                changed = () if stat.S_ISDIR(kind) else (status.st_size, status.st_mtime_ns)
                if not name.endswith(".lock"):
                    found[str(path.relative_to(case))] = (kind, *changed)
    return found
