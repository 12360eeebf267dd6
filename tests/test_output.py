"""Output directories that appear complete or not at all, and working directories that survive a kill."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outputs import content_of, names, publish, write_files
from systems import may_write_anywhere

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import RECORDS, OutputDirectory, check_replaceable


def test_an_output_appears_complete(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "deep/er/out")
    output.check(0)
    with output.open() as folder:
        (folder / "file").write_text("new")
        assert not output.path.exists()
    assert names(output.path) == ["file"]
    assert names(output.path.parent) == ["out"]


def test_an_existing_output_needs_overwrite(tmp_path: Path) -> None:
    write_files(tmp_path / "out", "old")
    with pytest.raises(LonasEdgeError, match=r"already exists\. .*--overwrite"):
        OutputDirectory(tmp_path / "out").check(0)
    output = OutputDirectory(tmp_path / "out", overwrite=True)
    output.check(0)
    with output.open() as folder:
        (folder / "file").write_text("new")
        assert content_of(tmp_path / "out") == "old"  # until the end
    assert names(tmp_path / "out") == ["file"]
    assert names(tmp_path) == ["out"]


def test_an_output_that_was_created_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="already exists"), OutputDirectory(tmp_path / "out").open() as folder:
        write_files(tmp_path / "out", "other")
        (folder / "file").write_text("new")
    assert content_of(tmp_path / "out") == "other" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [LonasEdgeError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException, overwrite: bool) -> None:
    output = tmp_path / "deep/out"
    if overwrite:
        write_files(output, "old")
    with pytest.raises(type(error)), OutputDirectory(output, overwrite).open() as folder:
        (folder / "file").write_text("half")
        raise error
    assert names(tmp_path) == (["deep"] if overwrite else [])
    assert content_of(output) == ("old" if overwrite else "absent")


HOLD = """
import sys
from pathlib import Path
from lonas_edge.output import OutputDirectory
with OutputDirectory(Path(sys.argv[1])).open():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_writes_an_output(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    for run in (lambda: OutputDirectory(tmp_path / "out").check(0), lambda: publish(tmp_path / "out")):
        with pytest.raises(LonasEdgeError, match="another process is writing it"):
            run()
    holder.kill()  # the system frees its lock
    holder.communicate()
    publish(tmp_path / "out")
    assert names(tmp_path) == ["out"]


# resumable runs


def work(folder: Path, *arguments: object, stop: BaseException | None = None, **options: object) -> bool:
    """Run something that keeps the file `step` and publishes it; return whether it continued another run."""
    output = OutputDirectory(folder / "out", overwrite=bool(options.pop("overwrite", False)))
    output.check(0, resumable=True)
    identity, *resume = arguments
    with output.resume("train", identity, *resume, **options) as resumed:  # type: ignore[arg-type]
        step = output.partial / "step"
        assert resumed == step.exists()
        step.write_text("kept")
        if stop:
            raise stop
        with output.publish() as new:
            (new / "training.json").write_text(step.read_text())
    return resumed


IDENTITY = {"data": "a" * 64, "options": {"lr": 0.1, "layers": (1, 2)}}


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (KeyboardInterrupt(), "{path}: interrupted.\n{kept}. The same command continues from it."),
        (LonasEdgeError("no memory"), "no memory\n{kept}. The same command continues from it."),
        (RuntimeError("a bug"), ""),
    ],
)
def test_a_stopped_run_continues(stop: BaseException, message: str, tmp_path: Path) -> None:
    write_files(tmp_path / "out", "old")
    with pytest.raises(RuntimeError if isinstance(stop, RuntimeError) else LonasEdgeError) as raised:
        work(tmp_path, IDENTITY, stop=stop, overwrite=True)
    if message:
        kept = f"The work so far is kept in {tmp_path / 'out.partial'}"
        assert str(raised.value) == message.format(path=tmp_path / "out", kept=kept)
    assert names(tmp_path) == ["out", "out.partial"] and content_of(tmp_path / "out") == "old"
    assert work(tmp_path, IDENTITY, overwrite=True)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["training.json"]


def test_all_changed_settings_are_reported(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, stop=KeyboardInterrupt())
    changed = {"data": "b" * 64, "options": {"lr": 0.2, "layers": [1, 2]}, "seed": 1}
    with pytest.raises(LonasEdgeError) as raised:
        work(tmp_path, changed)
    headline, *lines, way_out = str(raised.value).splitlines()
    assert headline.startswith(f"{tmp_path / 'out.partial'}: cannot continue")
    assert lines == [
        f"  - data: was {'a' * 12}…, is {'b' * 12}…",
        "  - options lr: was 0.1, is 0.2",
        "  - seed: was missing, is 1",
    ]
    assert "start again with --overwrite" in way_out
    assert work(tmp_path, changed, restart=True) is False, "discards the unfinished run"


def test_with_an_explicit_resume(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="no unfinished run to resume"):
        work(tmp_path, IDENTITY, True)
    assert names(tmp_path) == []
    with pytest.raises(LonasEdgeError, match="The same command with --resume continues"):
        work(tmp_path, IDENTITY, False, stop=KeyboardInterrupt())
    with pytest.raises(LonasEdgeError, match=r"unfinished run is kept there.*--resume.*--overwrite"):
        work(tmp_path, IDENTITY, False)
    assert work(tmp_path, IDENTITY, True)


def refuse_each(message: str, output: OutputDirectory, command: str) -> None:
    """Every way to use an output is refused with this message."""
    runs: list[Callable[[], object]] = [
        lambda: output.check(0),
        lambda: publish(output.path),
        lambda: output.resume(command, IDENTITY).__enter__(),
    ]
    for run in runs:
        with pytest.raises(LonasEdgeError, match=message):
            run()


def test_an_unfinished_run_belongs_to_its_command(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), output.resume("train", IDENTITY):  # keeps nothing
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, stop=KeyboardInterrupt())
    refuse_each(r"out\.partial: an unfinished `lonas-edge train` is kept there", output, "search")
    assert names(tmp_path / "out.partial") == ["partial.json", "step"]


def test_a_restart_keeps_work_that_can_continue(tmp_path: Path) -> None:
    """That of the same run, and that of another command."""
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, stop=KeyboardInterrupt())
    with (
        pytest.raises(LonasEdgeError, match="an unfinished `lonas-edge train` is kept there"),
        OutputDirectory(tmp_path / "out").resume("search", {"data": "other"}, restart=True),
    ):
        pass
    assert work(tmp_path, IDENTITY, restart=True), "continues"


def test_a_directory_of_the_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/photo.jpg").write_text("mine")
    refuse_each(r"out\.partial: not written by lonas-edge", OutputDirectory(tmp_path / "out"), "train")
    assert names(tmp_path) == ["out.partial"] and names(tmp_path / "out.partial") == ["photo.jpg"]


def test_a_damaged_record_is_reported_and_can_be_discarded(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, stop=KeyboardInterrupt())
    (tmp_path / "out.partial/partial.json").write_text('{"command": "train"')
    with pytest.raises(LonasEdgeError, match=r"out\.partial/partial\.json: not readable as JSON"):
        work(tmp_path, IDENTITY)
    assert work(tmp_path, IDENTITY, restart=True) is False


# --overwrite


def test_outputs_of_lonas_edge_and_empty_directories_are_replaced(tmp_path: Path) -> None:
    for record in RECORDS:
        (tmp_path / record).mkdir()
        (tmp_path / record / record).write_text('{\n  "schema": "lonas-edge/bench/1"}')
        OutputDirectory(tmp_path / record, overwrite=True).check(0)
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")
    assert content_of(tmp_path / "out") == "new"


def refuse_overwrite(path: Path, expected: str, inputs: tuple[Path | str | None, ...] = ()) -> None:
    """--overwrite refuses to replace a path, before the expensive part and after it, and says why."""
    with pytest.raises(LonasEdgeError, match=expected):
        OutputDirectory(path, True, inputs).check(0)
    with pytest.raises(LonasEdgeError, match=expected), OutputDirectory(path, True, inputs).open() as folder:
        (folder / "file").write_text("new")


def test_other_content_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/photo.jpg").write_text("mine")
    refuse_overwrite(tmp_path / "out", "replaces only outputs of lonas-edge")
    (tmp_path / "out" / RECORDS[1]).write_text('{"schema": "other/1"}')
    refuse_overwrite(tmp_path / "out", "replaces only outputs of lonas-edge")
    assert names(tmp_path / "out") == ["photo.jpg", RECORDS[1]] and names(tmp_path) == ["out"]
    (tmp_path / "file").write_text('{"bootstrapNAS": {}}')
    refuse_overwrite(tmp_path / "file", "expected a directory")
    write_files(tmp_path / "elsewhere", "old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refuse_overwrite(tmp_path / "link", "replaces only outputs of lonas-edge")
    assert content_of(tmp_path / "elsewhere") == "old"


@pytest.mark.parametrize("used", ["out", "link/sub/file"])
def test_inputs_are_kept(used: str, tmp_path: Path) -> None:
    write_files(tmp_path / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "out")  # the path of an input leads into the output
    refuse_overwrite(tmp_path / "out", f"would delete {tmp_path / used}", (None, "no/such", tmp_path / used))
    assert (tmp_path / used).exists()


def test_an_output_inside_its_input_is_replaced(tmp_path: Path) -> None:
    for folder in ("source/out", "out-2"):
        write_files(tmp_path / folder, "old")
    inputs = (tmp_path / "source", tmp_path / "source/model", tmp_path / "out-2", "source/out-of-hub", None)
    OutputDirectory(tmp_path / "source/out", True, inputs).check(0)


def test_search_spaces_are_replaced_and_no_other_files(tmp_path: Path) -> None:
    space, other = tmp_path / "space.json", tmp_path / "other.json"
    space.write_text('{"bootstrapNAS": {}}')
    other.write_text('{"mine": 1}')
    check_replaceable(tmp_path / "new.json", False, directory=False)
    check_replaceable(space, True, directory=False)
    for path, overwrite, inputs, message in (
        (space, False, (), "already exists"),
        (space, True, (space,), "which this run reads"),
        (other, True, (), "expected a search space"),
        (tmp_path, True, (), "expected a search space"),
    ):
        with pytest.raises(LonasEdgeError, match=message):
            check_replaceable(path, overwrite, inputs, directory=False)


# the disk


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Set the free space of all disks, in bytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free))


@pytest.mark.parametrize(
    ("error", "free"), [(OSError(28, "No space left on device"), 10**9), (RuntimeError("cannot write the model"), 1000)]
)
def test_a_full_disk_is_reported(error: Exception, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, free)
    with pytest.raises(LonasEdgeError) as raised, OutputDirectory(tmp_path / "out").open():
        raise error
    assert str(raised.value).startswith(f"{tmp_path / 'out'}: the disk is full; nothing was changed")
    assert names(tmp_path) == []


def test_other_errors_are_unchanged(tmp_path: Path) -> None:
    for error in (RuntimeError("a bug"), LonasEdgeError("Verification failed:\n - no"), OSError(5, "Input/output error")):
        with pytest.raises(type(error)) as raised, OutputDirectory(tmp_path / "out").open():
            raise error
        assert raised.value is error


def test_parents_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LonasEdgeError, match="is not a writable directory"):
        OutputDirectory(tmp_path / "file/out").check(0)
    if may_write_anywhere():  # simulate the permission for root
        monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(LonasEdgeError, match="is not a writable directory"):
        OutputDirectory(tmp_path / "new/out").check(0)
