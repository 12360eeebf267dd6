"""Outputs that appear whole or not at all, and that replace nothing but what lonas-edge wrote.

An output is written beside its place, in `.NAME.xxxxxxxx.incomplete/new`, and takes its place by one rename at the end.
One that is replaced is exchanged with it in one system call where Linux can; where not, it waits in `…incomplete/old` between
two renames. What a stopped run left is cleared, or put back, by `_recover`: at once after Ctrl-C or a fault, and by the next
run that writes there after a kill.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_json

RECORDS = ("lonas_edge.json", "training.json", "bench.json", "eval.json", "search.json")  # an output holds one of them
_SIGNED = b'"lonas-edge'  # is in each of them: the schema, and before there was one the versions of packages
_HEAD_BYTES = 2**24  # of a record are read for that
_SPACE = "bootstrapNAS"  # is in every search space

_HOLDER, _NEW, _OLD = ".incomplete", "new", "old"
_LOCK = ".lock"
_FULL_BYTES = 2**22  # a disk with less room than this is full: libraries write in pieces
_NO_ROOM = re.compile(r"no space left|os error 28\b|quota exceeded", re.IGNORECASE)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


@dataclass(frozen=True)
class OutputDirectory:
    """A directory that appears whole or not at all: written beside its place, renamed last.

    Attributes:
        path: Its place.
        overwrite: Whether what lonas-edge wrote there before is replaced.
        inputs: What the run reads, and so never replaces; None and names that are no paths (of a hub) are passed over.
    """

    path: Path
    overwrite: bool = False
    inputs: Sequence[Path | str | None] = ()

    def check(self, needed_bytes: int) -> None:
        """Refuse before the long part what could not be written after it. Clears what killed runs left.

        Args:
            needed_bytes: How much will be written.

        Raises:
            LonasEdgeError: If the output exists and is not to be replaced, its parent cannot be written, or the disk has no
                room.
        """
        _refuse_place(self.path)
        _settle(self.path)
        _refuse_existing(self.path, self.overwrite, self.inputs, directory=True)
        parent = _existing_parent(self.path)
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            reason = "cannot be written to" if parent.is_dir() else "is not a directory"
            raise LonasEdgeError(f"{self.path}: {parent} {reason}. Choose another --output.")
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise LonasEdgeError(
                f"{self.path}: not enough room: {needed_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free. "
                "Free some, or choose an --output on another disk."
            )

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yield a directory to write into; it becomes the output when the block ends without an error.

        Its files are on the disk, not in the system's memory only, before it does: 0.07 s for 130 MB.

        Yields:
            The temporary directory.

        Raises:
            LonasEdgeError: If it cannot be written.
        """
        _refuse_place(self.path)
        made = [parent for parent in self.path.absolute().parents if not parent.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _settle(self.path)
            with self._held() as holder:
                yield holder / _NEW
                self._publish(holder / _NEW, holder / _OLD)
        except OSError as error:
            raise LonasEdgeError(f"{self.path}: cannot be written: {error}") from error
        finally:
            for parent in made if not os.path.lexists(self.path) else ():
                with suppress(OSError):
                    parent.rmdir()

    @contextmanager
    def _held(self) -> Iterator[Path]:
        """The directory that this run works in. It is locked before it is there, so that nobody takes it for a dead run's."""
        holder = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}{_HOLDER}")
        with locked(holder):
            try:
                holder.mkdir(0o700)
                (holder / _NEW).mkdir()  # as the user's other directories: it will be one of them
                yield holder
            except Exception as error:  # before anything is cleared: the disk may be full
                self._raise_if_the_disk(error)
                raise
            finally:
                _recover(self.path, holder)

    def _publish(self, new: Path, old: Path) -> None:
        _sync(new)
        if not os.path.lexists(self.path):
            new.rename(self.path)
        elif not self.overwrite:
            raise LonasEdgeError(
                f"{self.path}: appeared while it was being made, and is kept as it is. Move it away, or --overwrite."
            )
        else:
            _refuse_existing(self.path, True, self.inputs, directory=True)
            if not _exchange(new, self.path):
                self.path.rename(old)
                new.rename(self.path)
        with suppress(OSError):  # the output is there
            _sync_one(self.path.parent)

    def _raise_if_the_disk(self, error: Exception) -> None:
        """Say so where the disk is at fault; libraries have errors of their own for that."""
        said = (str(error).strip() or type(error).__name__).splitlines()
        full = [line for line in said if _NO_ROOM.search(line)]
        known = isinstance(error, LonasEdgeError) or getattr(error, "errno", None) is not None  # says itself what is wrong
        if full or (not known and shutil.disk_usage(self.path.parent).free < _FULL_BYTES):
            reason = f"no room is left on the disk ({(full or said)[-1].strip()}). Free some, or choose another --output."
        elif isinstance(error, OSError):
            reason = str(error)
        else:
            return
        raise LonasEdgeError(f"{self.path}: writing failed, nothing was changed: {reason}") from error


def check_output_file(path: Path, overwrite: bool, inputs: Sequence[Path | str | None] = ()) -> None:
    """Refuse an output that is one file, a search space, where it is not to be written.

    Args:
        path: The file.
        overwrite: Whether a search space that is there is replaced.
        inputs: What the run reads.

    Raises:
        LonasEdgeError: If there is something that is not to be replaced.
    """
    _refuse_place(path)
    _refuse_existing(path, overwrite, inputs, directory=False)


def made_by_us(path: Path) -> bool:
    """Whether --overwrite may replace it: an empty directory, one that has a record of lonas-edge, or a search space.

    Args:
        path: A directory or file.

    Returns:
        Whether it is one of these.
    """
    if path.is_dir():
        return not any(path.iterdir()) or any(_is_record(path / name) for name in RECORDS)
    try:
        return path.is_file() and _SPACE in read_json(path)
    except LonasEdgeError:
        return False


def _is_record(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.name == RECORDS[0] or _SIGNED in file.read(_HEAD_BYTES)


def _refuse_place(path: Path) -> None:
    """Refuse what is no place for an output, whatever it holds."""
    reason = ""
    if path.is_symlink():
        reason = f"is a link to {path.readlink()}. Give that place itself as --output."
    elif path.exists():
        with suppress(OSError, RuntimeError):  # a working directory that was deleted; a user without a home
            reason = "is your home directory, or holds it" if _holds(path, Path.home()) else reason
            reason = "is the working directory, or holds it" if _holds(path, Path.cwd()) else reason
        reason = "is where a disk is mounted" if not reason and os.path.ismount(path) else reason
        reason = reason and f"{reason}. Choose an --output in it, or beside it."
    if not reason and path.name in ("", ".."):
        reason = "is no name. Choose another --output."
    if reason:
        raise LonasEdgeError(f"{path}: {reason}")


def _refuse_existing(path: Path, overwrite: bool, inputs: Sequence[Path | str | None], directory: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise LonasEdgeError(f"{path}: exists and is kept as it is. Choose another --output, or give --overwrite.")
    if path.is_dir() != directory:
        found, wanted = ("is not a directory", "one") if directory else ("is a directory", "a file")
        raise LonasEdgeError(f"{path}: {found}, and --output is {wanted}. Choose another --output, or move it away.")
    used = [str(one) for one in inputs if one and os.path.lexists(one) and _deletes(path, Path(one))]
    if used:
        raise LonasEdgeError(
            f"{path}: --overwrite would delete {', '.join(used)}, which this run reads. Choose another --output."
        )
    try:
        ours = made_by_us(path)
    except OSError as error:
        raise LonasEdgeError(f"{path}: cannot be read, so it is not replaced: {error}. Choose another --output.") from error
    if not ours:
        raise LonasEdgeError(
            f"{path}: --overwrite replaces only what lonas-edge wrote; {_told(path)}. Choose another --output, or move it away."
        )


def _told(path: Path) -> str:
    """What was found instead of an output."""
    if not path.is_dir():
        return "this is not a search space"
    names = sorted(f"{entry.name}{os.sep * entry.is_dir()}" for entry in path.iterdir())
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"this holds {', '.join(names[:3])}{more}, and none of its records ({', '.join(RECORDS)})"


def _deletes(output: Path, used: Path) -> bool:
    """Whether replacing an output would delete an input, or a file that a link in it stands for (as in a hub's cache)."""
    entries = used.iterdir() if used.is_dir() and os.access(used, os.R_OK) else ()
    return any(_holds(output, one) for one in (used, *(entry for entry in entries if entry.is_symlink())))


def _holds(folder: Path, other: Path) -> bool:
    """Whether a path is a directory itself or lies in it, by whatever name."""
    places = {other.absolute(), other.resolve()}
    return any(_same(folder, place) for path in places for place in (path, *path.parents))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a directory's lock, as long as its writer lives.

    The lock is on a file beside the directory: open files in it would keep some systems from renaming it, and it would get
    into what is published. The system frees it when the process ends, however it ends.

    Args:
        folder: The directory.

    Yields:
        Whether it is held: False where another process holds it, or the directory is not there.
    """
    file = folder.with_name(f".{folder.name.removeprefix('.')}{_LOCK}")
    lock = FileLock(file)
    try:
        file.parent.stat()  # filelock would make it
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):
        yield False
        return
    try:
        yield folder.is_dir()
    finally:
        with suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
            file.unlink()  # before the release: after it, the file may be another's
        lock.release()


def _settle(path: Path) -> None:
    """Clear what killed runs left for this output; an output that one had set aside returns to its place."""
    ours = re.compile(rf"(\.{re.escape(path.name)}\.[^.]+{re.escape(_HOLDER)})(?:{re.escape(_LOCK)})?")
    with suppress(OSError):  # what cannot be cleared is in nobody's way
        found = [ours.fullmatch(entry.name) for entry in path.parent.iterdir()]
        for name in {match[1] for match in found if match}:
            holder = path.with_name(name)
            with locked(holder) as abandoned, suppress(OSError):
                if abandoned:
                    _recover(path, holder)


def _recover(path: Path, holder: Path) -> None:
    """Clear what a run worked in. Where it was stopped between the two renames, the old output returns to its place first.

    That both are there says so: an old one alone has been replaced, and may be half deleted.
    """
    new, old = holder / _NEW, holder / _OLD
    if old.exists() and new.exists():
        if os.path.lexists(path):  # put there by somebody else since; the old output is not ours to delete
            return
        old.rename(path)
    shutil.rmtree(holder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; returns whether this system and file system can."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # another C library
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _sync(folder: Path) -> None:
    """Have everything in a directory on the disk: after a power cut, too, what was renamed is whole."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            _sync_one(path)


def _sync_one(path: Path) -> None:
    if os.name != "posix":  # elsewhere a directory cannot be opened, nor a file synced that is open for reading
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not do it
            raise
    finally:
        os.close(file)
