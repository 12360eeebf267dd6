"""However a command ends, it is told in a line: what is raised, what is asked, what the terminal and the memory are like."""

import builtins
import io
import os
import re
import signal
import subprocess
import sys
import threading
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

from lonas_edge.cli.guard import _usable_streams, guarded
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.errors import LonasEdgeError

DATASETS = Path(__file__).parents[1] / "evaluate/data"
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
    (KeyError("\x1b[31m"), UNEXPECTED.format("KeyError", r"'\\x1b\[31m'")),
    (validation_error(), UNEXPECTED.format("ValidationError", "2 validation errors for dict.*")),
    (MemoryError(), r"error: out of memory in lonas-edge inspect \(starting\)\. Close other programs; .*"),
    (RuntimeError("std::bad_alloc"), r"error: out of memory in .*"),
    (OSError(28, "No space left on device", "/a/b"), r"error: /a/b: No space left on device"),
    (OSError(30, "Read-only file system", "/a", None, "/b"), r"error: /a: /b: Read-only file system"),
    (OSError(28, "No space left on device"), r"error: No space left on device, in lonas-edge inspect \(starting\)"),
    (PermissionError(13, "Permission denied", b"/a\x1b"), r"error: /a\\x1b: Permission denied"),
    (
        RuntimeError("PytorchStreamWriter: data/0: file write failed"),
        r"error: writing failed in .*data/0.*",
    ),
    (FileNotFoundError(2, "No usable temporary directory found in ['/a']"), r"error: No usable .*\['/a'\], in .*"),
    (KeyboardInterrupt(), "interrupted: nothing was written"),
    (interrupted_import(), "interrupted: nothing was written"),
    (LonasEdgeError("/a\x1b]0;b\x07: wrong"), r"error: /a\\x1b\]0;b\\x07: wrong"),
]


@pytest.mark.parametrize(("error", "told"), RAISED, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_whatever_is_raised(run_cli: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("lonas_edge.network.source.open_source", fails)
    ran = run_cli("inspect", "SOURCE")
    assert (ran.code, ran.out) == (1, "")
    assert re.fullmatch(told + "\n", ran.err), ran.err
    ran = run_cli("--debug", "inspect", "SOURCE")
    assert ran.code == 1 and re.search(told + "\n$", ran.err) and "Traceback" in ran.err
    monkeypatch.setenv("LONAS_EDGE_DEBUG", "1")
    assert "Traceback" in run_cli("inspect", "SOURCE").err


def test_a_signal_that_a_library_swallows_comes_again(run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def slow(*_arguments: object, **_options: object) -> None:
        Swallows()
        os.read(waiting, 1)  # for ever, but for what wakes it up in the end

    waiting, waking = os.pipe()
    awake: list[int] = []
    timer = threading.Timer(20, lambda: awake.append(os.write(waking, b"x")))
    timer.start()
    monkeypatch.setattr("lonas_edge.network.source.open_source", slow)
    ran = run_cli("inspect", "SOURCE")
    timer.cancel()
    os.close(waiting)
    os.close(waking)
    assert (ran.code, ran.err) == (1, "interrupted: nothing was written\n")
    assert not awake, "what waits is not interrupted"


def test_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hooks = sys.unraisablehook
    with pytest.raises(SystemExit) as ended:
        guarded(lambda: signal.raise_signal(signal.SIGTERM))
    assert ended.value.code == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert sys.unraisablehook is hooks


# wrong values

SPACE = ("space", "--model", "base", "--output", "new.json")
TRAIN = ("train", "--model", "base", "--data", "data.json", "--nncf-config", "space.json", "--output", "new")
EVAL, BENCH = ("eval", "exported", "--datasets", "data"), ("bench", "exported")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("inspect", ""), "is empty"),
        (("inspect", "a", "--subnet", ""), "--subnet.*is empty"),
        (("inspect", "a", "--seq-len", "9" * 30), "--seq-len.*at most"),
        (("inspect", "a", "--seq-len", "9" * 5000), "--seq-len"),
        (("export", "a", "--output", ""), "--output.*is empty"),
        ((*SPACE, "--ratios", "1e400"), "--ratios 1e400: input should be less than or equal to 1"),
        ((*SPACE, "--ranks", "8,,6"), "--ranks 8,,6: has an empty entry"),
        ((*TRAIN, "--lr", "nan"), "--lr.*not a finite number"),
        ((*TRAIN, "--lr", "1e300"), "--lr"),
        ((*TRAIN, "--alpha", "0"), "--alpha 0: input should be greater than 0"),
        ((*TRAIN, "--epochs", "1e308"), "--epochs 1e308: input should be less than or equal to 1000000"),
        ((*TRAIN, "--data", "a.json:1e308"), "--data a.json:1e308: a weight must be more than 0 and at most 1e.06"),
        ((*EVAL, "--tasks", ","), "--tasks.*has an empty entry"),
        ((*EVAL, "--property", "="), "--property =: expected NAME=VALUE"),
        ((*EVAL, "--property", "a\n=b"), "--property a =b: expected NAME=VALUE"),
        ((*BENCH, "--rounds", "9" * 30), "--rounds"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else "",
)
def test_wrong_values(
    run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_cli(*command)
    assert (ran.code, ran.out) == (2, ""), ran
    assert re.search(told, ran.err.splitlines()[-1]), ran.err
    assert not list(tmp_path.iterdir())


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


def test_what_is_being_done_may_be_hostile(capfd: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        report("[/nope] \x1b[31m", 0.5)
        report("[/stays] \x1b[31m\nnext", 0.5)
    assert r"[/stays] \x1b[31m" in capfd.readouterr().err


def test_a_terminal_of_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    table = Table()
    table.add_column("“1.0 ± 0.1” …")
    table.add_row("家\udcff")

    def prints() -> None:
        console().print(table)
        print("×")

    with pytest.raises(SystemExit) as ended:
        guarded(prints)
    assert ended.value.code == 0
    shown = raw.getvalue().decode("ascii")
    assert "1.0 \\xb1 0.1" in shown and "\\u5bb6\\udcff" in shown and shown.endswith("\\xd7\n")


def run(*arguments: object, shell: str = "", **options: Any) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m lonas_edge …`, with redirections by a shell."""
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "lonas_edge", *arguments))
    return subprocess.run(["bash", "-c", f"{words} {shell}"], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("shell", "code", "error"),
    [
        ("| true; exit ${PIPESTATUS[0]}", None, ""),
        (">/dev/full", 1, "error: .*No space left on device.*\n"),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_where_output_cannot_go(shell: str, code: int | None, error: str) -> None:
    ran = run("bench", "--help", shell=shell)
    assert ran.returncode in ((0, 1) if code is None else (code,))
    assert re.fullmatch(error, ran.stderr)


def test_help_in_ascii() -> None:
    """click writes it as UTF-8 nevertheless."""
    ran = run("bench", "--help", env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (ran.returncode, ran.stderr) == (0, "")


# memory


def commands(source: TinySource, exported: Path, folder: Path) -> dict[str, list[object]]:
    """Every command on tiny models, writing below `folder`."""
    train = ["--model", source.base, "--data", folder.parent / "data.json", "--nncf-config", source.space]
    model = ["--model", source.base, "--adapter", source.adapter]
    short = ["--prompt-len", "8", "--new-tokens", "4"]
    return {
        "inspect": ["inspect", *source.arguments()],
        "space": ["space", "--model", source.base, "--output", folder / "new.json", "--ranks", "8,6"],
        "export": ["export", *source.arguments(), "--output", folder / "new"],
        "train": ["train", *train, "--output", folder / "new", "--steps", "2", "--rank", "8"],
        "eval": ["eval", exported, "--datasets", DATASETS, "--tasks", "ARC-Easy", "--protocol", "option-text"],
        "bench": ["bench", exported, "--arms", "lora", *model, *short, "--output", folder / "new"],
    }


@pytest.fixture
def world(
    exported: Path, llama: TinySource, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[object]]:
    """Commands that can run, by name; what they write is below `tmp_path / "outputs"`."""
    assert data.parent == tmp_path
    (tmp_path / "outputs").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return commands(llama, exported, tmp_path / "outputs")


AFTER_IMPORTS = """
import resource, sys
from pathlib import Path
import lonas_edge.exporting.export, lonas_edge.training.train, nncf, optimum.intel.openvino
status = Path("/proc/self/status").read_text().splitlines()
taken = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (taken + 30 * 10**6,) * 2)
from lonas_edge.cli import main
main()
"""
NOTHING_LEFT = """
import resource
from lonas_edge.cli.guard import guarded
hoard = None
def fill():
    global hoard
    size = 2**20
    while size:
        try:
            hoard = (hoard, bytearray(size))
        except MemoryError:
            size //= 2
    raise MemoryError
resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8,) * 2)
guarded(fill)
"""
OUT_OF_MEMORY = r"(computed in fp32; .*\n)?error: (out of memory in lonas-edge {} \(|Training stopped: out of memory\.).*\n"


def told_out_of_memory(ran: "subprocess.CompletedProcess[str]", command: str, outputs: Path) -> None:
    """In a line, and nothing is written; the loader (127) or code in C (SIGABRT, SIGSEGV) may have given up before."""
    if ran.returncode in (127, -6, -11, 128 + 6, 128 + 11):
        pytest.skip(f"ended from outside Python: {ran.returncode}")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(OUT_OF_MEMORY.format(command), ran.stderr), ran.stderr
    assert not list(outputs.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "space", "export", "train", "eval", "bench"])
def test_too_little_memory_to_import(world: dict[str, list[object]], tmp_path: Path, command: str) -> None:
    """A limit of more would be met in code of OpenBLAS that tries for ever, or in other C code that aborts."""
    resource = pytest.importorskip("resource")
    ran = run(*world[command], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**8,) * 2))
    told_out_of_memory(ran, command, tmp_path / "outputs")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory taken is read from /proc")
@pytest.mark.parametrize("command", ["export", "train"])
def test_too_little_memory_to_work(world: dict[str, list[object]], tmp_path: Path, command: str) -> None:
    arguments = [sys.executable, "-c", AFTER_IMPORTS, *map(str, world[command])]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    told_out_of_memory(ran, command, tmp_path / "outputs")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no address space")
def test_no_memory_at_all() -> None:
    """What is kept back is enough to tell."""
    ran = subprocess.run([sys.executable, "-c", NOTHING_LEFT], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert re.fullmatch(r"error: out of memory in lonas-edge \(starting\)\. .*\n", ran.stderr), ran.stderr


def test_no_memory_to_say_more(run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lonas_edge.network.source.open_source", fails)
    monkeypatch.setattr("lonas_edge.cli.guard._message", fails)
    monkeypatch.setattr("atexit.register", lambda *_: None)
    ran = run_cli("inspect", "SOURCE")
    assert (ran.code, ran.err) == (1, "error: out of memory\n")


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


def told_in_a_line(process: "subprocess.Popen[str]") -> None:
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
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("inspect", "rich.status"),
        ("export", "lonas_edge.cli.commands"),
        pytest.param("export", "torch", marks=pytest.mark.slow),
        pytest.param("export", "openvino", marks=pytest.mark.slow),
        pytest.param("eval", "lm_eval", marks=pytest.mark.slow),
        pytest.param("bench", "lonas_edge.bench.run", marks=pytest.mark.slow),
        pytest.param("train", "accelerate", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_a_library_is_imported(world: dict[str, list[object]], tmp_path: Path, command: str, name: str) -> None:
    told_in_a_line(started(world[command], name))
    assert not list((tmp_path / "outputs").iterdir())


@pytest.mark.slow
@SIGNALS
@pytest.mark.parametrize(("command", "moment"), [("export", 0.0), ("bench", 0.3), ("export", 1.5)])
def test_ctrl_c_while_a_process_starts(world: dict[str, list[object]], tmp_path: Path, command: str, moment: float) -> None:
    process = started(world[command], LONAS_EDGE_SPAWN="1")
    deadline = time.monotonic() + 60
    while not any("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    time.sleep(moment)
    if moment == 0.3:
        process.terminate()  # SIGTERM, to the parent alone
    else:
        os.killpg(process.pid, signal.SIGINT)
    told_in_a_line(process)
    assert not list((tmp_path / "outputs").iterdir())


def test_an_import_is_not_needed_to_tell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where memory has run out, nothing more can be imported."""
    real = builtins.__import__

    def refuses(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("rich"):
            raise MemoryError
        return real(name, *arguments, **options)

    def fails() -> None:
        raise MemoryError

    monkeypatch.setattr(builtins, "__import__", refuses)
    with pytest.raises(SystemExit):
        guarded(fails)
    assert capfd.readouterr().err.startswith("error: out of memory in lonas-edge (starting).")


@pytest.mark.parametrize("debug", [True, False])
def test_what_libraries_print_is_no_output_of_a_process(debug: bool) -> None:
    program = "import os\nfrom lonas_edge.cli.guard import guarded\n"
    program += "guarded(lambda: (print('{'), os.write(1, b'a warning\\n'), print('ü}'))[:0] or 0)"
    environment = {**os.environ, "LONAS_EDGE_DEBUG": str(int(debug))}
    command = [sys.executable, "-X", "utf8", "-c", program]
    ran = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (ran.returncode, ran.stdout.decode(), ran.stderr) == (0, "{\nü}\n", b"a warning\n" if debug else b"")


class Console(io.TextIOWrapper):
    """A stream of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "platform", "variable", "utf8"),
    [
        (io.TextIOWrapper, "win32", None, True),
        (Console, "win32", None, False),
        (io.TextIOWrapper, "win32", "cp1252", False),
        (io.TextIOWrapper, "linux", None, False),
    ],
)
def test_files_and_pipes_are_utf8_on_windows(
    kind: type[io.TextIOWrapper], platform: str, variable: str | None, utf8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editors there write a byte order mark. A terminal and PYTHONIOENCODING keep their encoding."""
    written, text = io.BytesIO(), "Grüße" if utf8 else "ï»¿GrÃ¼ÃŸe"
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if variable:
        monkeypatch.setenv("PYTHONIOENCODING", variable)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", kind(io.BytesIO(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe"), encoding="cp1252"))
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, kind(written, encoding="cp1252"))
        patch.setattr(sys, "platform", platform)
        _usable_streams()
        read, streams = sys.stdin.read(), (sys.stdout, sys.stderr)
        for stream in streams:
            print("ü你\udcff", end="", file=stream, flush=True)
    assert read == text
    assert written.getvalue() == (b"\xc3\xbc\xe4\xbd\xa0\\udcff" if utf8 else b"\xfc\\u4f60\\udcff") * 2
