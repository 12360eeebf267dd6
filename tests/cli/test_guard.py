"""However a command ends, one line says why."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter
from rich.table import Table
from systems import SIGNALS
from tiny_models import TinySource

from lonas_edge.cli.terminal import console
from lonas_edge.errors import LonasEdgeError

UNEXPECTED = r"error: unexpected: {}: {} \(in lonas_edge/cli/inspect\.py:\d+\)\. .*please report it .*--version.*--debug.*"


def interrupted_import() -> ImportError:
    """What a library makes of Ctrl-C while it imports another."""
    error = ImportError("numpy cannot be imported")
    error.__cause__ = KeyboardInterrupt()
    return error


def validation_error() -> Exception:
    with pytest.raises(ValueError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"a": "b", "c": []})
    return caught.value


RAISED = [
    (RuntimeError("odd\n news"), UNEXPECTED.format("RuntimeError", "odd news")),
    (validation_error(), UNEXPECTED.format("ValidationError", "2 validation errors for dict.*")),
    (MemoryError(), r"error: out of memory in lonas-edge inspect \(Loading\)\. Close other programs\."),
    (RuntimeError("std::bad_alloc"), r"error: out of memory in .*"),
    (OSError(28, "No space left on device", "/a/b"), r"error: /a/b: No space left on device"),
    (OSError(28, "No space left on device"), r"error: No space left on device, in lonas-edge inspect \(Loading\)"),
    (PermissionError(13, "Permission denied", b"/a\x1b"), r"error: /a\\x1b: Permission denied"),
    (RuntimeError("PytorchStreamWriter: data/0: file write failed"), r"error: writing failed in .*data/0.*"),
    (KeyboardInterrupt(), "interrupted: nothing was written"),
    (interrupted_import(), "interrupted: nothing was written"),
    (LonasEdgeError("/a\x1b]0;b\x07: wrong"), r"error: /a\\x1b\]0;b\\x07: wrong"),
]


@pytest.mark.parametrize(("error", "message"), RAISED, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_an_error_is_one_line(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("lonas_edge.network.source.open_source", fails)
    ran = run_cli("inspect", "SOURCE")
    assert (ran.code, ran.out) == (1, "")
    assert re.fullmatch(message + "\n", ran.err), ran.err
    ran = run_cli("--debug", "inspect", "SOURCE")
    assert ran.code == 1 and re.search(message + "\n$", ran.err) and "Traceback" in ran.err
    monkeypatch.setenv("LONAS_EDGE_DEBUG", "1")
    assert "Traceback" in run_cli("inspect", "SOURCE").err


# the terminal


def test_names_are_neither_markup_nor_control(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "[bold]a[/nope] :smile: \x1b]0;title\x07"
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    table = Table(title=hostile)
    table.add_column(hostile)
    table.add_row(hostile)
    console().print(hostile)
    console().print(table)
    assert shown.getvalue().count(r"[bold]a[/nope] :smile: \x1b]0;title\x07") == 4
    assert not {"\x1b", "\x07"} & set(shown.getvalue())


def run(*arguments: object, shell: str = "", **options: Any) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m lonas_edge …`, with redirections by a shell."""
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "lonas_edge", *arguments))
    return subprocess.run(["bash", "-c", f"{words} {shell}"], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(("shell", "error"), [("| true", ""), (">/dev/full", "error: .*No space left on device.*\n")])
def test_where_output_cannot_go(shell: str, error: str) -> None:
    assert re.fullmatch(error, run("bench", "--help", shell=shell).stderr)


# Ctrl-C

AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.killpg(0, signal.SIGINT)
if {name!r}:
    sys.meta_path.insert(0, Finder())
from lonas_edge.cli import main
if __name__ == "__main__":
    main()
"""


def started(arguments: list[object], name: str = "", **environment: str) -> "subprocess.Popen[str]":
    """A command in a session of its own, as in a terminal; it gets Ctrl-C when it imports `name`."""
    command = [sys.executable, "-c", AT_IMPORT.format(name=name), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, start_new_session=True, env={**os.environ, **environment}, **pipes)


def ends_with_one_line(process: "subprocess.Popen[str]") -> None:
    """It ends with one line and code 1, and leaves no process."""
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    assert "Traceback" not in error and "Exception" not in error, error
    assert error.strip().splitlines()[-1].startswith(("interrupted: nothing was written", "error: interrupted"))
    deadline = time.monotonic() + 10
    while left := [one for one in psutil.pids() if of_session(one, process.pid)]:
        assert time.monotonic() < deadline, [psutil.Process(one).cmdline() for one in left]
        time.sleep(0.1)
    assert not out


def of_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


@SIGNALS
@pytest.mark.parametrize("name", ["lonas_edge.cli.commands", pytest.param("torch", marks=pytest.mark.slow)])
def test_ctrl_c_while_a_library_is_imported(llama: TinySource, tmp_path: Path, name: str) -> None:
    ends_with_one_line(started(["export", *llama.arguments(), "--output", tmp_path / "out"], name))
    assert not (tmp_path / "out").exists()
