"""Outputs that appear whole or not at all, and working directories that survive a kill.

A command writes `.NAME.new` next to its output NAME, and renames it at the end. An output that it replaces is `.NAME.old`
between two renames; after a kill the next run puts it back. `NAME.partial` of a resumable run holds what the run needs to
continue, and in `partial.json` what the continued run must share. `.NAME.lock` keeps other processes out; the system frees it
however a process ends.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_json, replace_text
from lonas_edge.schema import differences

RECORDS = (
    "lonas_edge.json", "training.json", "bench.json", "eval.json", "search.json", "compress.json", "draft.json",
    "vocabulary.json",
)  # fmt: skip
_SIGNATURE = b'"lonas-edge/'  # of the schema in these, one of which is in every output
_SPACE = "bootstrapNAS"  # in every search space
_PARTIAL = "partial.json"
_FULL_BYTES = 2**22  # a disk with less free space is full: libraries write in pieces
_NO_SPACE = re.compile(r"no space left|os error 28\b|quota exceeded", re.IGNORECASE)


@dataclass(frozen=True)
class OutputDirectory:
    """A directory that appears whole or not at all.

    Attributes:
        path: The output.
        overwrite: Whether an existing output of lonas-edge is replaced.
        inputs: Paths that the run reads and never replaces; None and hub ids are ignored.
    """

    path: Path
    overwrite: bool = False
    inputs: Sequence[Path | str | None] = ()

    @property
    def partial(self) -> Path:
        """The working directory NAME.partial."""
        return self.path.with_name(f"{self.path.name}.partial")

    def check(self, needed_bytes: int, resumable: bool = False) -> None:
        """Refuse an output that could not be written, before the expensive part. Clears what killed runs left.

        Args:
            needed_bytes: Size of the output.
            resumable: Whether an unfinished run in NAME.partial may stay there: `resume` looks at it.
        """
        check_replaceable(self.path, self.overwrite, self.inputs)
        parent = _existing_parent(self.path)
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise LonasEdgeError(f"{self.path}: {parent} is not a writable directory. Choose another --output.")
        if self.path.parent.exists():
            with self._locked():
                if not resumable:
                    self._refuse_unfinished()
        self.check_space(needed_bytes)

    def check_space(self, needed_bytes: int) -> None:
        """Refuse an output that is larger than the free space of its disk."""
        free = shutil.disk_usage(_existing_parent(self.path)).free
        if free < needed_bytes:
            raise LonasEdgeError(
                f"{self.path}: not enough disk space: {needed_bytes / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free. "
                "Free some, or choose an --output on another disk."
            )

    def identity(self) -> dict[str, Any]:
        """The identity of the unfinished run in NAME.partial; empty where none can be read."""
        with suppress(LonasEdgeError):
            return dict(read_json(self.partial / _PARTIAL)["identity"])
        return {}

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yield a directory that becomes the output when the block ends without an error."""
        with self._locked():
            self._refuse_unfinished()
            with self.publish() as folder:
                yield folder

    @contextmanager
    def resume(
        self, command: str, identity: Mapping[str, Any], resume: bool | None = None, restart: bool = False
    ) -> Iterator[bool]:
        """Hold NAME.partial during a run that can continue after a kill, until `publish`.

        Args:
            command: The command, for messages.
            identity: What a continued run must share, as JSON: settings, and hashes of the inputs.
            resume: Whether there must be an unfinished run (True), must not be one (False), or may be one (None).
            restart: Whether an unfinished run of the command that cannot continue is discarded first.

        Yields:
            Whether the run continues an earlier one.
        """
        with self._locked():
            if restart and self._differs(command, identity, resume):
                self._discard()
            resumed = self._continue(command, identity, resume)
            try:
                yield resumed
            except (KeyboardInterrupt, LonasEdgeError) as error:
                if not self._keeps_work():
                    raise
                message = str(error) or f"{self.path}: interrupted."
                again = f"The same command{'' if resume is None else ' with --resume'} continues from it."
                raise LonasEdgeError(f"{message}\nThe work so far is kept in {self.partial}. {again}") from error
            finally:
                if self.partial.is_dir() and not self._keeps_work():
                    self._discard()

    @contextmanager
    def publish(self) -> Iterator[Path]:
        """Yield a directory that becomes the output when the block ends; NAME.partial is removed then."""
        new = self._sibling("new")
        new.mkdir()
        try:
            yield new
            _sync(new)
            if os.path.lexists(self.path):
                check_replaceable(self.path, self.overwrite, self.inputs)
                self.path.rename(self._sibling("old"))
            new.rename(self.path)
        except Exception as error:
            if _NO_SPACE.search(str(error)) or shutil.disk_usage(self.path.parent).free < _FULL_BYTES:
                message = f"{self.path}: the disk is full; nothing was changed. Free some space, or choose another --output."
                raise LonasEdgeError(message) from error
            raise
        finally:
            self._recover()
        if self.partial.exists():
            self._discard()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        made = [parent for parent in self.path.absolute().parents if not parent.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self._sibling("lock")
        lock = FileLock(file)
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked or not file.exists():  # another process may have removed it in between
            lock.release()
            raise LonasEdgeError(f"{self.path}: another process is writing it. Wait for it, or choose another --output.")
        try:
            self._recover()
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open; filelock removes it there
                file.unlink()  # before the release: after it, the file may be another's
            lock.release()
            for parent in made:
                with suppress(OSError):  # not empty
                    parent.rmdir()

    def _sibling(self, kind: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{kind}")

    def _recover(self) -> None:
        """Put back an output that was set aside, and remove what is incomplete."""
        new, old = self._sibling("new"), self._sibling("old")
        if old.exists() and new.exists():  # stopped between the two renames; later, the old one may be half deleted
            if os.path.lexists(self.path):
                raise LonasEdgeError(f"{old}: set aside by a killed run, and {self.path} was created since. Move one away.")
            old.rename(self.path)
        for folder in (new, old, self._sibling("discarded")):
            shutil.rmtree(folder, ignore_errors=True)

    def _discard(self) -> None:
        """Delete NAME.partial; a kill leaves no half of it."""
        self.partial.rename(self._sibling("discarded"))
        self._recover()

    def _continue(self, command: str, identity: Mapping[str, Any], resume: bool | None) -> bool:
        """Check the run that is continued, or make NAME.partial."""
        unfinished = self._unfinished()
        if unfinished is None:
            if resume:
                raise LonasEdgeError(f"{self.path}: no unfinished run to resume. Run the command without --resume.")
            new = self._sibling("new")
            new.mkdir()
            replace_text(new / _PARTIAL, json.dumps({"command": command, "identity": identity}))
            new.rename(self.partial)
            return False
        if unfinished["command"] != command:
            self._refuse_unfinished()
        if resume is False:
            raise LonasEdgeError(
                f"{self.partial}: an unfinished run is kept there. Continue it with --resume, or start again with --overwrite."
            )
        raise_all(
            f"{self.partial}: cannot continue, because settings or inputs have changed:",
            differences(unfinished["identity"], identity),
            "Restore them, or start again with --overwrite.",
        )
        return True

    def _differs(self, command: str, identity: Mapping[str, Any], resume: bool | None) -> bool:
        """Whether an unfinished run of this command has another identity, or is not wanted; a damaged record, too."""
        if not (self.partial / _PARTIAL).is_file():
            return False
        try:
            unfinished = read_json(self.partial / _PARTIAL)
        except LonasEdgeError:
            return True
        known = unfinished["command"] == command
        return known and (resume is False or bool(differences(unfinished["identity"], identity)))

    def _unfinished(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.partial):
            return None
        if not (self.partial / _PARTIAL).is_file():
            raise LonasEdgeError(f"{self.partial}: not written by lonas-edge, which needs this name. Choose another --output.")
        return read_json(self.partial / _PARTIAL)

    def _refuse_unfinished(self) -> None:
        if unfinished := self._unfinished():
            kept = f"an unfinished `lonas-edge {unfinished['command']}` is kept there"
            raise LonasEdgeError(f"{self.partial}: {kept}. Choose another --output, or delete it.")

    def _keeps_work(self) -> bool:
        return self.partial.is_dir() and any(entry.name != _PARTIAL for entry in self.partial.iterdir())


def check_replaceable(path: Path, overwrite: bool, inputs: Sequence[Path | str | None] = (), directory: bool = True) -> None:
    """Refuse an output where something else is: only outputs of lonas-edge are replaced, with --overwrite, and no input."""
    if path.name in ("", ".."):
        raise LonasEdgeError(f"{path}: has no name. Choose another --output.")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise LonasEdgeError(f"{path}: already exists. Choose another --output, or pass --overwrite.")
    if path.is_symlink() or path.is_dir() != directory or not _made_by_us(path):
        expected = f"a directory with one of {', '.join(RECORDS)}" if directory else "a search space"
        raise LonasEdgeError(
            f"{path}: --overwrite replaces only outputs of lonas-edge; expected {expected}. Choose another --output, or move "
            "it away."
        )
    used = [each for each in inputs if each and Path(each).exists() and Path(each).resolve().is_relative_to(path.resolve())]
    if used:
        names = ", ".join(map(str, used))
        raise LonasEdgeError(f"{path}: --overwrite would delete {names}, which this run reads. Choose another --output.")


def _made_by_us(path: Path) -> bool:
    """Whether a path is an empty directory, an output of lonas-edge, or a search space."""
    if path.is_dir():
        if not any(path.iterdir()) or (path / RECORDS[0]).is_file():
            return True
        records = [path / name for name in RECORDS if (path / name).is_file()]
        return any(_SIGNATURE in record.read_bytes()[:100] for record in records)
    with suppress(LonasEdgeError):
        return _SPACE in read_json(path)
    return False


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _sync(folder: Path) -> None:
    """Write a directory to the disk, so that a power cut after the rename leaves it complete."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
