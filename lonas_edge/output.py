"""Outputs that appear whole or not at all: written beside their place, renamed last."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lonas_edge.errors import LonasEdgeError

_KEPT = "kept"  # the name of a replaced output inside the directory that sets it aside


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

    Args:
        folder: The directory.

    Yields:
        Whether it is held: False where another process holds it, or the directory has gone.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _settle(path: Path) -> None:
    """Clear what killed runs left for this output; an output that one had set aside returns to its place."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.(incomplete|old)")
    with suppress(OSError):  # what cannot be cleared is in nobody's way
        for left in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]:
            with locked(left) as abandoned:
                if abandoned and (left / _KEPT).exists() and not path.exists():
                    (left / _KEPT).rename(path)
                if abandoned:
                    shutil.rmtree(left, ignore_errors=True)
