"""Runs the command line in a forked child, so that each case costs the command alone and not its imports.

The parent has one thread and computes nothing: OpenMP and OpenVINO do not survive a fork. Commands and judges run in children.
"""

import contextlib
import gc
import importlib
import os
import pickle
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
MEMORY = 4 * 2**30  # bytes beyond what is mapped at the start; limits reads from an endless device
_LIBRARIES = ("openvino_genai", "openvino_tokenizers", "lm_eval.models.huggingface", "optuna", "transformers")
_LAZY = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "Trainer")
_MODELS = ("bert", "bloom", "gemma", "gpt_neox", "llama", "phi3")


@dataclass(frozen=True)
class Ran:
    """How a child ended: its exit code, minus the signal that ended it, or None after the time limit."""

    code: int | None
    out: str
    err: str
    seconds: float


def import_all() -> None:
    """Import everything that commands import; compute nothing and keep one thread."""
    import lonas_edge

    modules = [module.name for module in pkgutil.walk_packages(lonas_edge.__path__, "lonas_edge.")]
    for name in (*modules, *_LIBRARIES):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    import torch
    import transformers

    torch.set_num_threads(1)
    # PyTorch 2.13 makes its thread pool anew at the first call after a fork; of two threads that do this at once, as those in
    # which transformers loads weights, one finds no pool ("Invalid thread pool!")
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    for name in _LAZY:
        getattr(transformers, name)
    for name in _MODELS:
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    gc.collect()
    gc.freeze()


def run_in_jobs(
    numbers: Sequence[int], jobs: int, work: Path, run: Callable[[Path, Sequence[int]], list[Result]]
) -> list[Result]:
    """Divide cases among forked processes, each with its own directory in `work`; return the results in order.

    Raises:
        RuntimeError: If a process fails; it has printed its traceback.
    """
    children = []
    for job in range(jobs):
        folder = work / f"job-{job}"
        folder.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                (folder / "results").write_bytes(pickle.dumps(run(folder, numbers[job::jobs])))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append((pid, folder))
    codes = [os.waitpid(pid, 0)[1] for pid, _ in children]
    if any(codes):
        raise RuntimeError("a process failed")
    results: list[list[Result]] = [pickle.loads((folder / "results").read_bytes()) for _, folder in children]
    return [results[index % jobs][index // jobs] for index in range(len(numbers))]


def run_forked(work: Callable[[], int | None], folder: Path, logs: Path, seconds: float) -> Ran:
    """Run `work` in a child with limits of time and memory; its value is the exit code.

    Args:
        work: The function to run.
        folder: The child's working directory.
        logs: An existing directory for standard output and error.
        seconds: Limit of processor time and of wall-clock time.
    """
    out, err = logs / "out", logs / "err"
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(work, folder, out, err, seconds)
    code = _wait(pid, start + seconds)
    with contextlib.suppress(OSError):  # processes that it started are in its group
        os.killpg(pid, signal.SIGKILL)
    return Ran(code, _text(out), _text(err), time.monotonic() - start)


def _text(path: Path) -> str:
    return path.read_bytes()[:2_000_000].decode(errors="replace")


def _child(work: Callable[[], int | None], folder: Path, out: Path, err: Path, seconds: float) -> None:
    code = 1
    try:
        os.setsid()
        redirect(out, err)
        _limit(seconds)
        os.chdir(folder)
        code = work() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def redirect(out: Path, err: Path) -> None:
    """Send the standard streams of this process to files, and let Ctrl-C interrupt it."""
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _limit(seconds: float) -> None:
    cpu = int(seconds) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def _wait(pid: int, deadline: float) -> int | None:
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


def main_in(case: Path, arguments: list[str]) -> None:
    """Call `lonas-edge` in this process, with home, cache and temporary files in the case's directory."""
    os.environ |= {"HOME": str(case / "home"), "TMPDIR": str(case / "tmp"), "XDG_CACHE_HOME": str(case / "cache")}
    tempfile.tempdir = None
    sys.argv = ["lonas-edge", *arguments]
    from lonas_edge.cli import main

    main()


def run_command(arguments: list[str], case: Path, seconds: float) -> Ran:
    """Run `lonas-edge` in the directory `in` of a case, at most `seconds`."""
    for name in ("tmp", "home", "logs", "cache"):
        (case / name).mkdir(exist_ok=True)
    return run_forked(lambda: main_in(case, arguments), case / "in", case / "logs", seconds)
