"""Output directories that appear whole or not at all, and the locks that say whose they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outputs import found, names, publish, write_whole
from safetensors import SafetensorError
from systems import may_write_anywhere

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import RECORDS, OutputDirectory, check_output_file, locked, made_by_us


def test_output_appears_whole(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "deep/er/out")
    output.check(0)
    with output.open() as folder:
        assert folder.parent.parent == output.path.parent  # beside it: the rename stays on one disk
        (folder / "file").write_text("new")
        assert not output.path.exists()
    assert names(output.path) == ["file"]
    assert names(output.path.parent) == ["out"]
    assert output.path.stat().st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    """The process's umask."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_existing_output_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(LonasEdgeError, match=r"exists and is kept as it is.*--overwrite"):
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


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fault", [LonasEdgeError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, fault: BaseException, overwrite: bool) -> None:
    if overwrite:
        write_whole(tmp_path / "out", "old")

    def run() -> None:
        with OutputDirectory(tmp_path / "out", overwrite).open() as folder:
            (folder / "file").write_text("half")
            raise fault

    with pytest.raises(LonasEdgeError if isinstance(fault, OSError) else type(fault)):
        run()
    assert names(tmp_path) == (["out"] if overwrite else [])
    assert found(tmp_path / "out") == ("old" if overwrite else "absent")


def test_failure_removes_the_parents_it_made(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError), OutputDirectory(tmp_path / "deep/er/out").open():
        raise LonasEdgeError("no")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_leftovers_of_dead_runs_are_removed_and_live_ones_kept(tmp_path: Path, name: str) -> None:
    dead, live, other = (tmp_path / f".{who}.incomplete" for who in (f"{name}.dead", f"{name}.live", "another.dead"))
    for folder in (dead, live, other):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    holder = start_holder(live)
    try:
        with OutputDirectory(tmp_path / name).open() as folder:
            (folder / "file").write_text("new")
        assert names(tmp_path) == sorted([live.name, f"{live.name}.lock", other.name, name])
        assert names(live) == ["model.safetensors"]
    finally:
        holder.communicate()
    with pytest.raises(LonasEdgeError, match="exists and is kept"):
        OutputDirectory(tmp_path / name).check(0)
    assert names(tmp_path) == sorted([other.name, name])


HOLD = """
import sys
from pathlib import Path
from lonas_edge.output import locked
with locked(Path(sys.argv[1])) as held:
    print("held" if held else "not held", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds a directory's lock until it is told to end, or killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_the_writer_holds_its_lock(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "out").open() as folder:
        asked = subprocess.run(
            [sys.executable, "-c", HOLD, folder.parent], input="", capture_output=True, text=True, check=True
        )
        assert asked.stdout == "not held\n"
        with locked(folder.parent) as held:  # nor this process once more
            assert not held
        assert names(folder) == []
    assert names(tmp_path) == ["out"]


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    (tmp_path / "working").mkdir()
    for _ in range(2):
        with locked(tmp_path / "working") as held:
            assert held
            assert names(tmp_path / "working") == []
    assert names(tmp_path) == ["working"]


def test_no_lock_on_what_has_gone(tmp_path: Path) -> None:
    for folder in (tmp_path / "gone", tmp_path / "gone/too"):
        with locked(folder) as held:
            assert not held
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    (tmp_path / "working").mkdir()
    holder = start_holder(tmp_path / "working")
    with locked(tmp_path / "working") as held:
        assert not held
    holder.kill()
    holder.communicate()
    assert names(tmp_path) == [".working.lock", "working"]
    with locked(tmp_path / "working") as held:
        assert held
    assert names(tmp_path) == ["working"]


def test_a_lock_that_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """Killed after the rename and before its lock was removed."""
    for name in (".out.abc.incomplete.lock", ".other.abc.incomplete.lock"):
        (tmp_path / name).touch()
    OutputDirectory(tmp_path / "out").check(0)
    assert names(tmp_path) == [".other.abc.incomplete.lock"]


# what is replaced


@pytest.mark.parametrize("record", RECORDS)
def test_what_lonas_edge_wrote_is_replaced(record: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / record).write_text('{"versions": {"lonas-edge": "0.1"}}')
    assert made_by_us(tmp_path / "out")
    OutputDirectory(tmp_path / "out", overwrite=True).check(0)


@pytest.mark.parametrize("record", RECORDS[1:])
@pytest.mark.parametrize("content", ['{"schema": "other/1"}', "", None])
def test_records_of_others_are_not_ours(record: str, content: str | None, tmp_path: Path) -> None:
    if content is None and not hasattr(os, "mkfifo"):
        pytest.skip("pipes have names on POSIX")
    (tmp_path / record).write_text(content) if content is not None else os.mkfifo(tmp_path / record)
    assert not made_by_us(tmp_path)


def test_an_empty_directory_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with OutputDirectory(tmp_path / "out", overwrite=True).open() as folder:
        (folder / "file").write_text("new")
    assert names(tmp_path / "out") == ["file"]


def kept(path: Path, *told: str, inputs: tuple[Path | str | None, ...] = ()) -> None:
    """--overwrite refuses to replace a path, before the long part and after it, and says why."""
    with pytest.raises(LonasEdgeError) as early:
        OutputDirectory(path, True, inputs).check(0)
    with pytest.raises(LonasEdgeError) as late, OutputDirectory(path, True, inputs).open() as folder:
        (folder / "file").write_text("new")
    for error in (str(early.value), str(late.value)):
        assert error.startswith(f"{path}: ") and "\n" not in error
        assert all(part in error for part in told), error


def test_photographs_are_kept(tmp_path: Path) -> None:
    photos = [f"photo{number}.jpg" for number in range(5)]
    (tmp_path / "out/album").mkdir(parents=True)
    for name in photos:
        (tmp_path / "out" / name).write_text("mine")
    kept(tmp_path / "out", "only what lonas-edge wrote", "album/, photo0.jpg, photo1.jpg and 3 more", "Choose another --output")
    assert names(tmp_path / "out") == ["album", *photos]
    assert names(tmp_path) == ["out"]


def test_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text('{"bootstrapNAS": {}}')
    kept(tmp_path / "out", "is not a directory")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(tmp_path: Path, there: bool) -> None:
    if there:
        write_whole(tmp_path / "elsewhere", "old")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    kept(tmp_path / "out", f"is a link to {tmp_path / 'elsewhere'}", "Give that place itself")
    assert found(tmp_path / "elsewhere") == ("old" if there else "absent")
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("where", [".", "..", "../..", "/", "sub/..", "../here", "{home}", "{link}"])
def test_the_working_directory_and_what_holds_it_are_kept(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "here", "old")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_whole(tmp_path / "home", "old")
    path = Path(where.format(home=tmp_path / "home", link=tmp_path / "link/here"))
    for overwrite in (True, False):
        with pytest.raises(LonasEdgeError, match=r"is the working directory|is your home|is no name"):
            OutputDirectory(path, overwrite).check(0)
        with pytest.raises(LonasEdgeError), OutputDirectory(path, overwrite).open():
            raise AssertionError
    assert (found(tmp_path / "here"), found(tmp_path / "home")) == ("old", "old")


def test_a_mount_point_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    kept(tmp_path / "out", "is where a disk is mounted", "in it")


@pytest.mark.parametrize("used", ["out", "out/sub", "out/sub/file", "link", "link/sub/file", "hub", "out/link"])
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
    for path, overwrite, inputs, told in (
        (space, False, (), "exists and is kept as it is"),
        (space, True, (space,), "which this run reads"),
        (other, True, (), "this is not a search space"),
        (link, True, (), "is a link to"),
        (tmp_path, True, (), "is a directory"),
        (Path(os.devnull), True, (), "this is not a search space"),
    ):
        with pytest.raises(LonasEdgeError, match=told):
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
def test_a_disk_that_fills_up_is_told_whoever_meets_it(
    error: Exception, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free))
    with pytest.raises(LonasEdgeError) as raised, OutputDirectory(tmp_path / "a/out").open():
        raise error
    told = str(raised.value)
    assert told.startswith(f"{tmp_path / 'a/out'}: writing failed, nothing was changed: no room is left on the disk")
    assert str(error).splitlines()[-1] in told and "\n" not in told
    assert names(tmp_path) == []


def test_a_fault_that_is_not_the_room_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))  # as of /proc
    with (
        pytest.raises(LonasEdgeError, match=r"nothing was changed: .*Input/output error"),
        OutputDirectory(tmp_path / "out").open(),
    ):
        raise OSError(5, "Input/output error")


def test_other_errors_are_not_the_disk_s(tmp_path: Path) -> None:
    for error in (RuntimeError("a fault of ours"), LonasEdgeError("Verification failed:\n - no")):
        with pytest.raises(type(error)) as raised, OutputDirectory(tmp_path / "out").open():
            raise error
        assert raised.value is error


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is written")
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


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 999))
    with pytest.raises(LonasEdgeError, match=r"not enough room: 0\.50 GB needed, 0.00 GB free"):
        OutputDirectory(tmp_path / "a/b/out").check(500_000_000)
    OutputDirectory(tmp_path / "a/b/out").check(999)
    assert names(tmp_path) == []


def test_read_only_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if may_write_anywhere():  # root may write anywhere: ask as if not
        monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(LonasEdgeError, match="cannot be written to"):
        OutputDirectory(tmp_path / "new/out").check(0)


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LonasEdgeError, match="file"):
        OutputDirectory(tmp_path / "file/out").check(0)
    assert (tmp_path / "file").read_text() == "mine"
