"""The package on other systems than Linux, as far as Linux can tell: what it imports and calls, and which ways it takes."""

import ast
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from outputs import found, names, publish, write_whole

from lonas_edge import output as output_module
from lonas_edge.bench import machine
from lonas_edge.ir import graph, runtime

PACKAGE = Path(output_module.__file__).parent
MODULES = {"_posixsubprocess", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}  # of POSIX alone
CALLS = {"fork", "forkpty", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "mknod", "setsid", "uname", "wait", "waitpid"}
ALLOWED = {"processes.py: signal.SIGKILL"}  # on Linux alone


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGE.rglob("*.py"):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_can_be_imported_everywhere() -> None:
    """What POSIX alone has is imported where it is used, and `sys.platform` or an ImportError says that it is not there."""
    found = {
        f"{path.name}: {name}"
        for path, tree in trees()
        for node in tree.body
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
        if name in MODULES
    }
    assert found == set()


def test_nothing_is_called_that_only_posix_has() -> None:
    here = {name for name in vars(signal) if name.startswith("SIG")} - {"SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN"}
    here -= {"SIG_BLOCK", "SIG_SETMASK"}  # of pthread_sigmask, which is asked for first
    found = {
        f"{path.name}: {node.value.id}.{node.attr}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id == "os" and node.attr in CALLS) or (node.value.id == "signal" and node.attr in here)
    }
    assert found == ALLOWED


def test_text_is_utf_8_whatever_the_system_s_own_is() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text")
        if "encoding" not in {keyword.arg for keyword in node.keywords}
    ]
    assert found == []


@pytest.mark.parametrize(
    ("platform", "asked", "forked"),
    [
        ("linux", "", True),
        ("linux", "1", False),
        ("darwin", "", False),
        ("win32", "", False),
    ],
)
def test_where_processes_are_forked(monkeypatch: pytest.MonkeyPatch, platform: str, asked: str, forked: bool) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(graph.SPAWN, asked)
    assert graph.forks() is forked


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_an_output_is_replaced_where_directories_cannot_be_exchanged(
    monkeypatch: pytest.MonkeyPatch, platform: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    write_whole(tmp_path / "out", "old")
    publish(tmp_path / "out")
    assert found(tmp_path / "out") == "new" and names(tmp_path) == ["out"]


class _Windows:
    """A process as psutil has it on Windows: a peak, no affinity."""

    def __init__(self, *_: object) -> None:
        pass

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=5, peak_wset=7)


def test_a_machine_that_describes_no_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "Process", _Windows)
    place = machine.placement(None, sysfs=tmp_path)
    assert place.cores == tuple(range(os.cpu_count() or 1)) and place.threads == len(place.cores)


def test_properties_of_hybrid_processors_are_tried_where_linux_says_that_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "Path", lambda *_: Path("nowhere"))
    assert "SCHEDULING_CORE_TYPE" not in runtime.candidates("CPU", 4, 8)
