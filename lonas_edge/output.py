"""Outputs that appear whole or not at all: written beside their place, renamed last."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lonas_edge.errors import LonasEdgeError

_KEPT = "kept"  # the name of a replaced output inside the directory that sets it aside
_LOCK = ".lock"


@dataclass(frozen=True)
class OutputDirectory:
    """A directory that appears whole or not at all: written beside its place, renamed last."""

    path: Path
    overwrite: bool = False

    def check(self, needed_bytes: int) -> None:
        """Refuse before the long part what could not be written after it. Clears what killed runs left.

        Args:
            needed_bytes: How much will be written.

        Raises:
            LonasEdgeError: If the output exists, its parent cannot be written, or the disk has no room.
        """
        _settle(self.path)
        if self.path.exists() and not self.overwrite:
            raise LonasEdgeError(f"{self.path}: exists and is kept as it is. Choose another --output, or give --overwrite.")
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
        """Yield a temporary sibling to write into; it becomes the output when the block ends without an error.

        Yields:
            The temporary directory.

        Raises:
            LonasEdgeError: If it cannot be written.
        """
        made = [parent for parent in self.path.absolute().parents if not parent.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _settle(self.path)
            partial = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".incomplete", dir=self.path.parent))
        except OSError as error:
            raise LonasEdgeError(f"{self.path}: cannot be written: {error}") from error
        try:
            with locked(partial):
                yield partial
                self._publish(partial)
        except OSError as error:
            raise LonasEdgeError(f"{self.path}: writing failed, nothing was changed: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made if not self.path.exists() else ():
                with suppress(OSError):
                    parent.rmdir()

    def _publish(self, partial: Path) -> None:
        if os.name == "posix":  # a temporary directory is its owner's alone; an output is as the user's other files
            partial.chmod(0o777 & ~_umask())
        if not self.path.exists():
            partial.rename(self.path)
            return
        if not self.overwrite:
            raise LonasEdgeError(
                f"{self.path}: appeared while it was being made, and is kept as it is. Move it away, or --overwrite."
            )
        old = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".old", dir=self.path.parent))
        with locked(old):
            self.path.rename(old / _KEPT)
            try:
                partial.rename(self.path)
            except OSError:
                (old / _KEPT).rename(self.path)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
        Whether it is held: False where another process holds it, or the directory has gone.
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
    ours = re.compile(rf"(\.{re.escape(path.name)}\.[^.]+\.(?:incomplete|old))(?:{re.escape(_LOCK)})?")
    with suppress(OSError):  # what cannot be cleared is in nobody's way
        found = [ours.fullmatch(entry.name) for entry in path.parent.iterdir()]
        for name in {match[1] for match in found if match}:
            left = path.with_name(name)
            with locked(left) as abandoned:
                if abandoned and (left / _KEPT).exists() and not path.exists():
                    (left / _KEPT).rename(path)
                if abandoned:
                    shutil.rmtree(left, ignore_errors=True)
