"""Publishing, stopped before each call to the system and at each instruction: nothing is lost, and nothing is left.

Each stop is one in a forked process. What forks is small, a process of its own: that of the tests holds PyTorch and much more,
and to fork it takes ten times as long.
"""

import itertools
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from outputs import found, names, publish, write_whole

from lonas_edge import output as module
from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import OutputDirectory, PartialRecord

fcntl = pytest.importorskip("fcntl", reason="runs are forked, and stopped in calls of POSIX")

CALLS = {
    os: "rename replace mkdir rmdir unlink remove open close fsync scandir listdir lstat stat fstat chmod fchmod",
    fcntl: "flock",
    module: "_exchange",
}


class Stop:
    """Counts the calls to the system and does something before the n-th, or before that and all later ones."""

    def __init__(self, do: Callable[[], None], at: int, on: bool):
        self.do, self.at, self.on, self.count = do, at, on, 0

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.on and self.count > self.at):
                self.do()
            return call(*arguments, **options)

        return counted

    def install(self) -> None:
        for holder, calls in CALLS.items():
            for name in calls.split():
                setattr(holder, name, self.before(getattr(holder, name)))


def interrupt() -> None:
    raise KeyboardInterrupt


def fault() -> None:
    raise OSError(5, "Input/output error")


STOPPED, DONE, HALF = 9, 0, 1
WAYS: dict[str, tuple[Callable[[], None], bool]] = {
    "killed": (lambda: os._exit(STOPPED), False),
    "interrupted": (interrupt, False),
    "interrupted again and again": (interrupt, True),
    "one fault": (fault, False),
    "the disk is gone": (fault, True),
}


DEFAULT = {("killed", True, True), ("interrupted", False, True)}  # the other combinations are slow tests


@pytest.fixture(scope="module")
def small_process() -> Iterator[Pool]:
    """Ended at the end, whatever it does then."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def exchanging(exchange: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do something where directories change places in one call, as on Linux, or by two renames."""
    with nullcontext() if exchange else patch.object(module, "_exchange", lambda one, other: False):
        return work(*arguments)


def in_a_process(run: Callable[[], int]) -> int:
    """Exit code of a forked process that runs a function and ends without any clearing up."""
    child = os.fork()
    if not child:
        code = HALF
        try:
            code = run()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped(output: Path, stop: Stop, at_once: bool) -> int:
    """Run `publish` until it is stopped; where that can be caught, the output must be whole by then."""
    before = found(output)
    stop.install()
    ended = False
    with suppress(KeyboardInterrupt, LonasEdgeError, OSError):
        publish(output)
        ended = True
    reached = stop.count >= stop.at
    stop.at, stop.on = -1, False  # what is called from here on is not the run's
    whole = found(output) in (("new",) if ended else (before, "new"))
    if not whole and (ended or at_once):
        return HALF
    return STOPPED if reached else DONE


@pytest.mark.parametrize(
    ("way", "exchange", "existing"),
    [
        pytest.param(way, exchange, existing, marks=() if (way, exchange, existing) in DEFAULT else pytest.mark.slow)
        for way, exchange, existing in itertools.product(WAYS, (True, False), (True, False))
    ],
)
def test_stopped_before_each_call(way: str, exchange: bool, existing: bool, small_process: Pool, tmp_path: Path) -> None:
    """Whatever call to the system a run is stopped before, the next one finds the old output or the new, whole, and no more."""
    count, seen, left = small_process.apply(exchanging, (exchange, stop_before_each_call, way, existing, tmp_path))
    before = "old" if existing else "absent"
    assert count > 20
    assert seen == {before, "new"}
    gap = existing and not exchange and way in ("killed", "interrupted again and again", "the disk is gone")
    assert left == {before, "new", *(["absent"] if gap else [])}  # with an exchange there is no moment without an output


def stop_before_each_call(way: str, existing: bool, tmp_path: Path) -> tuple[int, set[str], set[str]]:
    """How many calls there are, and what the outputs were after the next run had looked at them, and before."""
    before, seen, left = "old" if existing else "absent", set(), set()
    do, on = WAYS[way]
    for at in range(1, 1000):
        folder, output = tmp_path / str(at), tmp_path / str(at) / "out"
        folder.mkdir()
        (folder / "mine").write_text("mine")
        if existing:
            write_whole(output, "old")
        code = in_a_process(lambda at=at, output=output: stopped(output, Stop(do, at, on), way in ("interrupted", "one fault")))
        assert code in (STOPPED, DONE), (at, names(folder))
        left.add(found(output))
        recover = OutputDirectory(output, overwrite=True)
        recover.check(0)
        assert found(output) in (before, "new"), (at, names(folder))
        assert names(folder) == sorted(["mine", *(["out"] if output.exists() else [])]), at
        seen.add(found(output))
        shutil.rmtree(folder)
        if code == DONE:
            break
    return at, seen, left


def leave(folder: Path, **content: str) -> Path:
    """Content of `out.partial` after a kill: `new` and `old` as they are given."""
    partial = folder / "out.partial"
    partial.mkdir()
    PartialRecord("", None).write(partial / "partial.json")
    for name, what in content.items():
        write_whole(partial / name, what)
    return partial


def test_an_output_is_put_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    leave(tmp_path, new="new", old="old")
    with pytest.raises(LonasEdgeError, match="already exists"):
        OutputDirectory(tmp_path / "out").check(0)
    assert found(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_a_replaced_output_does_not_return(tmp_path: Path) -> None:
    """Killed while the replaced output was deleted: half of it may be gone. The new one has been moved away since."""
    partial = leave(tmp_path, old="old")
    (partial / "old/model").unlink()
    OutputDirectory(tmp_path / "out").check(0)
    assert names(tmp_path) == []


def test_an_output_set_aside_is_kept_where_another_one_took_its_path(tmp_path: Path) -> None:
    partial = leave(tmp_path, new="new", old="old")
    write_whole(tmp_path / "out", "other")
    with pytest.raises(LonasEdgeError, match=r"out\.partial/old: a killed run set this output aside"):
        OutputDirectory(tmp_path / "out", overwrite=True).check(0)
    assert (found(tmp_path / "out"), found(partial / "old")) == ("other", "old")


@pytest.mark.slow
def test_the_work_of_a_killed_run_is_kept_until_its_output_is_there(small_process: Pool, tmp_path: Path) -> None:
    assert small_process.apply(kill_while_publishing, (tmp_path,)) == {"kept", "new"}


def kill_while_publishing(tmp_path: Path) -> set[str]:
    """What there was after a kill at each call: the work to continue from, or the new output."""

    def run(output: OutputDirectory, stop: Stop) -> int:
        stop.install()
        with output.resume("train", {}) as work, work.publish() as folder:
            folder.rmdir()
            write_whole(folder, "new")
        return DONE

    seen = set()
    for at in itertools.count(1):
        output = OutputDirectory(tmp_path / str(at) / "out", overwrite=True)
        write_whole(output.path, "old")
        with suppress(RuntimeError), output.resume("train", {}) as work:
            (work.path / "step").write_text("kept")
            raise RuntimeError
        code = in_a_process(lambda output=output, at=at: run(output, Stop(*WAYS["killed"][:1], at, False)))
        published = found(output.path) == "new"
        with suppress(RuntimeError), output.resume("train", {}) as work:
            assert work.resumed or published, at
            seen |= {"new" if published else (work.path / "step").read_text()}
            raise RuntimeError
        if code == DONE:
            break
    return seen
