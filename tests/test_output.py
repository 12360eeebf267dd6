"""Output directories that appear whole or not at all, and the locks that say whose they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import OutputDirectory, locked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_appears_whole(tmp_path: Path) -> None:
    output = OutputDirectory(tmp_path / "deep/er/out")
    output.check(0)
    with output.open() as folder:
        assert folder.parent == output.path.parent  # a sibling: the rename stays on one disk
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
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    output = OutputDirectory(tmp_path / "out", overwrite=True)
    output.check(0)
    with output.open() as folder:
        (folder / "file").write_text("new")
        assert (tmp_path / "out/mine").read_text() == "mine"  # until the very end
    assert names(tmp_path / "out") == ["file"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fault", [LonasEdgeError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, fault: BaseException, overwrite: bool) -> None:
    if overwrite:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("mine")

    def run() -> None:
        with OutputDirectory(tmp_path / "out", overwrite).open() as folder:
            (folder / "file").write_text("half")
            raise fault

    with pytest.raises(LonasEdgeError if isinstance(fault, OSError) else type(fault)):
        run()
    assert names(tmp_path) == (["out"] if overwrite else [])
    if overwrite:
        assert (tmp_path / "out/mine").read_text() == "mine"


def test_failure_removes_the_parents_it_made(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError), OutputDirectory(tmp_path / "deep/er/out").open():
        raise LonasEdgeError("no")
    assert names(tmp_path) == []


def test_failing_rename_restores_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".incomplete"):
            raise OSError("disk gone")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(LonasEdgeError, match="nothing was changed"), OutputDirectory(tmp_path / "out", True).open():
        pass
    assert (tmp_path / "out/mine").read_text() == "mine"
    assert names(tmp_path) == ["out"]


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
    with OutputDirectory(tmp_path / name, overwrite=True).open():
        pass
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
        asked = subprocess.run([sys.executable, "-c", HOLD, folder], input="", capture_output=True, text=True, check=True)
        assert asked.stdout == "not held\n"
        with locked(folder) as held:  # nor this process once more
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
    for name in (".out.abc.incomplete.lock", ".out.abc.old.lock", ".other.abc.old.lock"):
        (tmp_path / name).touch()
    OutputDirectory(tmp_path / "out").check(0)
    assert names(tmp_path) == [".other.abc.old.lock"]


def test_output_of_a_run_killed_between_the_renames_is_restored(tmp_path: Path) -> None:
    """Killed after the old output was set aside, and before the new one took its place: the next run finds the old one."""
    aside = tmp_path / ".out.abc.old"
    (aside / "kept").mkdir(parents=True)
    (aside / "kept/mine").write_text("mine")
    with pytest.raises(LonasEdgeError, match="exists and is kept"):
        OutputDirectory(tmp_path / "out").check(0)
    assert (tmp_path / "out/mine").read_text() == "mine"
    assert names(tmp_path) == ["out"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 999))
    with pytest.raises(LonasEdgeError, match=r"not enough room: 0\.50 GB needed, 0.00 GB free"):
        OutputDirectory(tmp_path / "a/b/out").check(500_000_000)
    OutputDirectory(tmp_path / "a/b/out").check(999)
    assert names(tmp_path) == []


def test_read_only_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere: ask as if not
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
