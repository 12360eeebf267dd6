"""Portability of the package, as far as it can be tested on Linux."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lonas_edge import output as output_module
from lonas_edge.bench import machine
from lonas_edge.ir import graph

PACKAGE = Path(output_module.__file__).parent
MODULES = {"_posixsubprocess", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}  # POSIX only
CALLS = {"fork", "forkpty", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "mknod", "setsid", "uname", "wait", "waitpid"}
ALLOWED = {"processes.py: signal.SIGKILL"}  # in code for Linux


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGE.rglob("*.py"):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_module_needs_posix() -> None:
    """Modules and functions of POSIX are imported and called only where other systems do not get to."""
    signals = {name for name in vars(signal) if name.startswith("SIG")} - {"SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN"}
    signals -= {"SIG_BLOCK", "SIG_SETMASK"}  # of pthread_sigmask, whose presence is checked
    used = set()
    for path, tree in trees():
        for node in tree.body:
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            used |= {f"{path.name}: {name}" for name in imported if name in MODULES}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = {"os": CALLS, "signal": signals}.get(node.value.id, ())
                used |= {f"{path.name}: {node.value.id}.{node.attr}"} if node.attr in names else set()
    assert used == ALLOWED


def test_text_is_read_and_written_as_utf_8() -> None:
    without = [
        f"{path.name}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text")
        if "encoding" not in {keyword.arg for keyword in node.keywords}
    ]
    assert without == []


@pytest.mark.parametrize(
    ("platform", "spawn", "forks"), [("linux", "", True), ("linux", "1", False), ("darwin", "", False), ("win32", "", False)]
)
def test_processes_are_forked_on_linux_only(monkeypatch: pytest.MonkeyPatch, platform: str, spawn: str, forks: bool) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(graph.SPAWN, spawn)
    assert graph.forks() is forks


def test_a_machine_without_affinity_and_sysfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(psutil, "Process", lambda *_: SimpleNamespace())
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: os.cpu_count())
    placement = machine.placement(sysfs=tmp_path)
    assert placement.cores == tuple(range(os.cpu_count() or 1)) and placement.threads == len(placement.cores)


def test_no_telemetry() -> None:
    """openvino and nncf send usage data if openvino_telemetry can be imported."""
    code = "import sys, lonas_edge.cli, openvino; print(sys.modules['openvino_telemetry'], 'openvino' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["None", "True"]
