"""Stop a run that publishes its output before each system call: nothing is lost, and nothing is left behind.

Each stop takes a forked process. A small process forks, because forking the one that holds PyTorch takes ten times as long.
"""

import itertools
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest
from outputs import content_of, names, publish, write_files

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import OutputDirectory

fcntl = pytest.importorskip("fcntl", reason="needs fork and POSIX system calls")

CALLS = {
    os: "rename replace mkdir rmdir unlink remove open close fsync scandir listdir lstat stat fstat chmod fchmod",
    fcntl: "flock",
}
STOPPED, DONE, PARTIAL = 9, 0, 1  # exit codes


def kill() -> None:
    os._exit(STOPPED)


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise OSError(5, "Input/output error")


WAYS = {"killed": (kill, False), "interrupted": (interrupt, False), "disk gone": (fail, True)}  # True: all later calls, too


class Stop:
    """Stops a run before system call number `at`, or before that one and all later ones."""

    def __init__(self, way: str, at: int):
        (self.stop, self.later), self.at, self.count = WAYS[way], at, 0

    def install(self) -> None:
        for holder, calls in CALLS.items():
            for name in calls.split():
                setattr(holder, name, self.before(getattr(holder, name)))

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.later and self.count > self.at > 0):
                self.stop()
            return call(*arguments, **options)

        return counted


@pytest.fixture(scope="module")
def small_process() -> Iterator[Pool]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def forked(run: Callable[[], int]) -> int:
    """Run a function in a forked process that ends without cleaning up; return its exit code."""
    child = os.fork()
    if not child:
        code = PARTIAL
        try:
            code = run()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopped(output: Path, way: str, at: int) -> int:
    """Publish until the stop. After an exception that the run can handle, the output must be complete at once."""
    before, stop, published = content_of(output), Stop(way, at), False
    stop.install()
    with suppress(KeyboardInterrupt, LonasEdgeError, OSError):
        publish(output)
        published = True
    reached, stop.at = stop.count >= at, -1  # later calls are the test's
    complete = content_of(output) in (("new",) if published else (before, "new"))
    if not complete and (published or way == "interrupted"):
        return PARTIAL
    return STOPPED if reached else DONE


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("way", [*list(WAYS)[:2], pytest.param("disk gone", marks=pytest.mark.slow)])
def test_stopped_before_each_call(way: str, existing: bool, small_process: Pool, tmp_path: Path) -> None:
    """The next run finds the complete old or new output and nothing else."""
    count, recovered, left = small_process.apply(stop_before_each_call, (way, existing, tmp_path))
    before = "old" if existing else "absent"
    assert count > 20
    assert recovered == {before, "new"}
    gap = existing and way != "interrupted"  # between two renames there is no output
    assert left == {before, "new", *(["absent"] if gap else [])}


def stop_before_each_call(way: str, existing: bool, tmp_path: Path) -> tuple[int, set[str], set[str]]:
    """Return the number of calls, and the contents of the output after and before the next run's recovery."""
    before, recovered, left = "old" if existing else "absent", set(), set()
    for at in itertools.count(1):
        folder, output = tmp_path / str(at), tmp_path / str(at) / "out"
        folder.mkdir()
        (folder / "mine").write_text("mine")
        if existing:
            write_files(output, "old")
        code = forked(lambda output=output, at=at: stopped(output, way, at))
        assert code in (STOPPED, DONE), (at, names(folder))
        left.add(content_of(output))
        OutputDirectory(output, overwrite=True).check(0)
        recovered.add(content_of(output))
        assert content_of(output) in (before, "new"), (at, names(folder))
        assert names(folder) == sorted(["mine", *(["out"] if output.exists() else [])]), at
        shutil.rmtree(folder)
        if code == DONE:
            return at, recovered, left
    raise AssertionError


def test_a_replaced_output_does_not_return(tmp_path: Path) -> None:
    """Killed while the replaced output was deleted, so it may be incomplete. The new output has been moved away since."""
    write_files(tmp_path / ".out.old", "old")
    (tmp_path / ".out.old/model").unlink()
    OutputDirectory(tmp_path / "out").check(0)
    assert names(tmp_path) == []


def test_an_output_that_was_set_aside_is_kept_if_another_one_took_its_path(tmp_path: Path) -> None:
    for name, content in ((".out.new", "new"), (".out.old", "old"), ("out", "other")):
        write_files(tmp_path / name, content)
    with pytest.raises(LonasEdgeError, match=r"\.out\.old: set aside by a killed run"):
        OutputDirectory(tmp_path / "out", overwrite=True).check(0)
    assert (content_of(tmp_path / "out"), content_of(tmp_path / ".out.old")) == ("other", "old")


@pytest.mark.slow
def test_the_work_of_a_killed_run_is_kept_until_its_output_is_there(small_process: Pool, tmp_path: Path) -> None:
    assert small_process.apply(kill_while_publishing, (tmp_path,)) == {"kept", "new"}


def kill_while_publishing(tmp_path: Path) -> set[str]:
    """Kill a resumable run at each call; return what was there afterwards: work to continue from, or the new output."""

    def run(output: OutputDirectory, stop: Stop) -> int:
        stop.install()
        with output.resume("train", {}), output.publish() as folder:
            folder.rmdir()
            write_files(folder, "new")
        return DONE

    seen = set()
    for at in itertools.count(1):
        output = OutputDirectory(tmp_path / str(at) / "out", overwrite=True)
        write_files(output.path, "old")
        with suppress(RuntimeError), output.resume("train", {}):
            (output.partial / "step").write_text("kept")
            raise RuntimeError
        code = forked(lambda output=output, at=at: run(output, Stop("killed", at)))
        published = content_of(output.path) == "new"
        with suppress(RuntimeError), output.resume("train", {}) as resumed:
            assert resumed or published, at
            seen.add("new" if published else (output.partial / "step").read_text())
            raise RuntimeError
        if code == DONE:
            return seen
    raise AssertionError
