"""The output directory of a search: one search at a time writes it, and a later one goes on with what is there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lonas_edge.errors import LonasEdgeError
from lonas_edge.output import locked
from lonas_edge.search import LATENCY, SEARCH, STUDY, SUBNETWORKS
from lonas_edge.search.record import SearchRecord


@contextmanager
def place(output: Path, resume: bool, overwrite: bool, shared: bool) -> Iterator[SearchRecord | None]:
    """Hold the directory while the block runs.

    Unlike other outputs it is filled as the search goes on, each file whole or not at all, so that a kill loses nothing.

    Args:
        output: The directory.
        resume: Whether there must be a search to go on with.
        overwrite: Whether a search that is there is removed.
        shared: Whether trials are kept elsewhere, so that the directory need not know of them.

    Yields:
        The record of the search that is there; None where there is none yet.

    Raises:
        LonasEdgeError: If it holds something else, another search is writing it, or there is nothing to resume.
    """
    check(output, resume, shared)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LonasEdgeError(f"{output}: cannot be written: {error}") from error
    with locked(output) as held:
        if not held:
            raise LonasEdgeError(
                f"{output}: another search is writing it. Wait for it; or join it from another --output, with --storage."
            )
        if overwrite:
            _clear(output)
        yield SearchRecord.read(output / SEARCH) if (output / SEARCH).exists() else None


def check(output: Path, resume: bool, shared: bool) -> None:
    """Refuse a directory that holds something else, or nothing where there should be a search.

    Args:
        output: The directory.
        resume: As of `place`.
        shared: As of `place`.

    Raises:
        LonasEdgeError: If it is so.
    """
    there = any((output / name).exists() for name in (SEARCH, STUDY, LATENCY, SUBNETWORKS))
    if resume and not there and not shared:
        raise LonasEdgeError(f"--resume: {output} holds no search. Leave it out to begin one.")
    if output.exists() and not there and (not output.is_dir() or any(output.iterdir())):
        raise LonasEdgeError(f"{output}: exists and holds no search; it is kept as it is. Choose another --output.")


def _clear(output: Path) -> None:
    for path in output.iterdir():
        if path.name == SUBNETWORKS:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
