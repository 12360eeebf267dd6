"""Output directories that appear whole or not at all, and working directories that survive a kill."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outputs import found, names, publish, write_whole
from safetensors import SafetensorError
from systems import may_write_anywhere

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import OutputDirectory, locked
from lonas_edge.overwrite import RECORDS, check_output_file, made_by_us


def test_output_appears_whole(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "deep/er/out")
    output.check(0)
    with output.open() as folder:
        (folder / "file").write_text("new")
        assert not output.path.exists()
    assert names(output.path) == ["file"]
    assert names(output.path.parent) == ["out"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert output.path.stat().st_mode & 0o777 == 0o777 & ~mask


def test_existing_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(LonasEdgeError, match=r"already exists\. .*--overwrite"):
        OutputDirectory(tmp_path / "out").check(0)
    assert (tmp_path / "out/mine").read_text() == "mine"


def test_overwrite_replaces_all_of_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "out", "old")
    output = OutputDirectory(tmp_path / "out", overwrite=True)
    output.check(0)
    with output.open() as folder:
        (folder / "file").write_text("new")
        assert found(tmp_path / "out") == "old"  # until the very end
    assert names(tmp_path / "out") == ["file"]
    assert names(tmp_path) == ["out"]


def test_output_that_was_created_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="was created while"), OutputDirectory(tmp_path / "out").open() as folder:
        write_whole(tmp_path / "out", "other")
        (folder / "file").write_text("new")
    assert found(tmp_path / "out") == "other" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [LonasEdgeError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, error: BaseException, overwrite: bool) -> None:
    output = tmp_path / "deep/out"
    if overwrite:
        write_whole(output, "old")
    expected = LonasEdgeError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), OutputDirectory(output, overwrite).open() as folder:
        (folder / "file").write_text("half")
        raise error
    assert names(tmp_path) == (["deep"] if overwrite else []), "parents that were made for it go, too"
    assert found(output) == ("old" if overwrite else "absent")


HOLD = """
import sys
from pathlib import Path
from lonas_edge.output import locked
with locked(Path(sys.argv[1])) as held:
    print("held" if held else "not held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_writes_an_output(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(partial)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    partial.mkdir()
    for run in (lambda: OutputDirectory(tmp_path / "out").check(0), lambda: publish(tmp_path / "out")):
        with pytest.raises(LonasEdgeError, match="another process is writing it"):
            run()
    holder.kill()  # the system frees its lock
    holder.communicate()
    publish(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_nor_does_one_process_twice(tmp_path: Path) -> None:
    with locked(tmp_path / "out") as first, locked(tmp_path / "out") as second:
        assert first and not second
    assert names(tmp_path) == []


# runs that can continue


def work(folder: Path, *arguments: object, stop: BaseException | None = None, **options: object) -> bool:
    """A run that keeps the file `step` and publishes it; returns whether it continued another one."""
    output = OutputDirectory(folder / "out", overwrite=bool(options.pop("overwrite", False)))
    output.check(0, resumable=True)
    identity, *resume = arguments
    with output.resume("train", identity, *resume, **options) as run:  # type: ignore[arg-type]
        assert run.resumed == (run.path / "step").exists()
        (run.path / "step").write_text("kept")
        if stop:
            raise stop
        with run.publish() as new:
            (new / "training.json").write_text((run.path / "step").read_text())
    return run.resumed


IDENTITY = {"data": "a" * 64, "options": {"lr": 0.1, "layers": (1, 2)}}


@pytest.mark.parametrize(
    ("stop", "message"),
    [(KeyboardInterrupt(), "{path}: interrupted. "), (LonasEdgeError("no memory"), "no memory\n"), (RuntimeError("a bug"), "")],
)
def test_a_stopped_run_continues(stop: BaseException, message: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError if isinstance(stop, RuntimeError) else LonasEdgeError) as raised:
        work(tmp_path, IDENTITY, stop=stop)
    if message:
        kept = f"The work so far is kept in {tmp_path / 'out.partial'}. Run the same command again to continue."
        assert str(raised.value) == message.format(path=tmp_path / "out") + kept
    assert names(tmp_path) == ["out.partial"]
    assert work(tmp_path, IDENTITY)
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
    assert "delete this directory" in way_out
    assert work(tmp_path, changed, restart=True) is False, "discards the unfinished run"


def test_with_an_explicit_resume(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match="no unfinished run to resume"):
        work(tmp_path, IDENTITY, True)
    assert names(tmp_path) == []
    with pytest.raises(LonasEdgeError, match="Run the same command again with --resume to continue"):
        work(tmp_path, IDENTITY, False, stop=KeyboardInterrupt())
    with pytest.raises(LonasEdgeError, match=r"unfinished run is kept there.*--resume.*--overwrite"):
        work(tmp_path, IDENTITY, False)
    assert work(tmp_path, IDENTITY, True)


def test_an_unfinished_run_is_not_another_command_s(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, stop=KeyboardInterrupt())
    output = OutputDirectory(tmp_path / "out")
    runs: list[Callable[[], object]] = [
        lambda: output.check(0),
        lambda: publish(tmp_path / "out"),
        lambda: output.resume("search", IDENTITY).__enter__(),
    ]
    for run in runs:
        with pytest.raises(LonasEdgeError, match=r"out\.partial: an unfinished `lonas-edge train` is kept there"):
            run()
    assert names(tmp_path / "out.partial") == ["partial.json", "step"]


def test_nothing_is_kept_of_a_run_that_kept_nothing(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "new/out")
    with pytest.raises(KeyboardInterrupt), output.resume("train", IDENTITY):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_continued_run_replaces_the_output_at_its_end(tmp_path: Path) -> None:
    write_whole(tmp_path / "out", "old")
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, overwrite=True, stop=KeyboardInterrupt())
    assert found(tmp_path / "out") == "old"
    assert work(tmp_path, IDENTITY, overwrite=True)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["training.json"]


@pytest.mark.parametrize("resumable", [True, False])
def test_a_directory_of_the_user_is_left_alone(resumable: bool, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/photo.jpg").write_text("mine")
    output = OutputDirectory(tmp_path / "out")
    runs: list[Callable[[], object]] = [
        lambda: output.check(0, resumable),
        lambda: publish(tmp_path / "out"),
        lambda: output.resume("train", IDENTITY, restart=True).__enter__(),
    ]
    for run in runs:
        with pytest.raises(LonasEdgeError, match=r"out\.partial: .* did not write what is there\. Move it away"):
            run()
    assert names(tmp_path) == ["out.partial"] and names(tmp_path / "out.partial") == ["photo.jpg"]


def test_a_damaged_record_is_reported_and_can_be_discarded(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError):
        work(tmp_path, IDENTITY, stop=KeyboardInterrupt())
    (tmp_path / "out.partial/partial.json").write_text('{"schema": "lonas-edge/partial/1"')
    with pytest.raises(LonasEdgeError, match=r"out\.partial/partial\.json: not readable as JSON"):
        work(tmp_path, IDENTITY)
    assert work(tmp_path, IDENTITY, restart=True) is False


# what --overwrite replaces


@pytest.mark.parametrize("record", RECORDS)
def test_outputs_of_lonas_edge_are_replaced(record: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / record).write_text('{\n  "schema": "lonas-edge/bench/1"}')
    assert made_by_us(tmp_path / "out")
    OutputDirectory(tmp_path / "out", overwrite=True).check(0)


@pytest.mark.parametrize("content", ['{"schema": "other/1"}', "", None])
def test_records_of_others_are_not_ours(content: str | None, tmp_path: Path) -> None:
    record = tmp_path / RECORDS[1]
    record.write_text(content) if content is not None else os.mkfifo(record)
    assert not made_by_us(tmp_path)


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")
    assert found(tmp_path / "out") == "new"


def kept(path: Path, *expected: str, inputs: tuple[Path | str | None, ...] = ()) -> None:
    """--overwrite refuses to replace a path, before the expensive part and after it, and says why."""
    with pytest.raises(LonasEdgeError) as early:
        OutputDirectory(path, True, inputs).check(0)
    with pytest.raises(LonasEdgeError) as late, OutputDirectory(path, True, inputs).open() as folder:
        (folder / "file").write_text("new")
    for error in (str(early.value), str(late.value)):
        assert error.startswith(f"{path}: ") and "\n" not in error
        assert all(part in error for part in expected), error


def test_photographs_are_kept(tmp_path: Path) -> None:
    photos = [f"photo{number}.jpg" for number in range(5)]
    (tmp_path / "out/album").mkdir(parents=True)
    for name in photos:
        (tmp_path / "out" / name).write_text("mine")
    kept(tmp_path / "out", "only outputs of lonas-edge", "album/, photo0.jpg, photo1.jpg and 3 more", "Choose another --output")
    assert names(tmp_path / "out") == ["album", *photos]
    assert names(tmp_path) == ["out"]


def test_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text('{"bootstrapNAS": {}}')
    kept(tmp_path / "out", "is a file; expected a directory")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    if there:
        write_whole(tmp_path / "elsewhere", "old")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    kept(tmp_path / "out", f"is a link to {tmp_path / 'elsewhere'}", "Pass that path itself")
    assert found(tmp_path / "elsewhere") == ("old" if there else "absent")
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("where", [".", "..", "../..", "/", "sub/..", "../here", "{home}", "{link}"])
def test_the_working_directory_and_its_parents_are_kept(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "here", "old")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_whole(tmp_path / "home", "old")
    path = Path(where.format(home=tmp_path / "home", link=tmp_path / "link/here"))
    for overwrite in (True, False):
        with pytest.raises(LonasEdgeError, match=r"is the working directory|is your home|has no name"):
            OutputDirectory(path, overwrite).check(0)
        with pytest.raises(LonasEdgeError), OutputDirectory(path, overwrite).open():
            raise AssertionError
    assert (found(tmp_path / "here"), found(tmp_path / "home")) == ("old", "old")


def test_a_mount_point_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    kept(tmp_path / "out", "is a mount point", "inside it")


@pytest.mark.parametrize("used", ["out", "out/sub/file", "link/sub/file", "hub", "out/link"])
def test_inputs_are_kept(used: str, tmp_path: Path) -> None:
    write_whole(tmp_path / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "out")  # a name of an input that leads into the output
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/model").symlink_to(tmp_path / "out/model")  # an input whose files lie in the output
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/sub/link").symlink_to(tmp_path / "elsewhere") if used == "out/link" else None
    used = "out/sub/link" if used == "out/link" else used  # an input that the output holds the name of
    kept(tmp_path / "out", f"would delete {tmp_path / used}", inputs=(None, "no/such", tmp_path / used))
    assert (tmp_path / used).exists()


def test_other_inputs_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("source/out", "out-2", "minimal"):
        write_whole(tmp_path / folder, "old")
    monkeypatch.chdir(tmp_path)
    inputs = (tmp_path / "source", tmp_path / "source/model", tmp_path / "out-2", "source/out-of-hub", None)
    OutputDirectory(tmp_path / "source/out", True, inputs).check(0)  # an output inside its input


def test_a_search_space_is_replaced_and_no_other_file(tmp_path: Path) -> None:
    space, other, link = tmp_path / "space.json", tmp_path / "other.json", tmp_path / "link.json"
    space.write_text('{"bootstrapNAS": {}}')
    other.write_text('{"mine": 1}')
    link.symlink_to(space)
    check_output_file(tmp_path / "new.json", False)
    check_output_file(space, True)
    for path, overwrite, inputs, message in (
        (space, False, (), "already exists"),
        (space, True, (space,), "which this run reads"),
        (other, True, (), "is not a search space"),
        (link, True, (), "is a link to"),
        (tmp_path, True, (), "is a directory; expected a file"),
        (Path(os.devnull), True, (), "is not a search space"),
    ):
        with pytest.raises(LonasEdgeError, match=message):
            check_output_file(path, overwrite, inputs)


# the disk


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(28, "No space left on device"), 10**9),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 10**9),
        (RuntimeError("cannot write the model"), 1000),
        (LonasEdgeError("The conversion failed:\nTraceback\nOSError: [Errno 28] No space left on device"), 10**9),
    ],
)
def test_a_full_disk_is_reported_whichever_library_meets_it(
    error: Exception, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free))
    with pytest.raises(LonasEdgeError) as raised, OutputDirectory(tmp_path / "a/out").open():
        raise error
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'a/out'}: writing failed, nothing was changed: the disk is full")
    assert str(error).splitlines()[-1] in message and "\n" not in message
    assert names(tmp_path) == []


def test_other_errors_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("a bug"), LonasEdgeError("Verification failed:\n - no")):
        with pytest.raises(type(error)) as raised, OutputDirectory(tmp_path / "out").open():
            raise error
        assert raised.value is error
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))  # as of /proc
    output = OutputDirectory(tmp_path / "out")
    with pytest.raises(LonasEdgeError, match=r"nothing was changed: .*Input/output error"), output.open():
        raise OSError(5, "Input/output error")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names the files that are written")
def test_files_are_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, fsync, rename = [], os.fsync, os.rename

    def synced(file: int) -> None:
        done.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda *paths: (done.append("rename"), rename(*paths)))
    publish(tmp_path / "out")
    last = done.index("rename")
    assert sorted(done[:last]) == ["file", "lonas_edge.json", "model", "new", "sub"]
    assert done[last + 1 :] == [tmp_path.name]


def test_too_little_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 999))
    with pytest.raises(LonasEdgeError, match=r"not enough disk space: 0\.50 GB needed, 0.00 GB free"):
        OutputDirectory(tmp_path / "a/b/out").check(500_000_000)
    OutputDirectory(tmp_path / "a/b/out").check(999)
    assert names(tmp_path) == []


def test_parents_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LonasEdgeError, match="file is not a directory"):
        OutputDirectory(tmp_path / "file/out").check(0)
    if may_write_anywhere():  # root may write anywhere: ask as if not
        monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(LonasEdgeError, match="is not writable"):
        OutputDirectory(tmp_path / "new/out").check(0)
