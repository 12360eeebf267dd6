"""Outputs as tests write and look at them."""

import os
from pathlib import Path

from lonas_edge.output import OutputDirectory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_whole(folder: Path, what: str) -> None:
    """An output as lonas-edge writes it, in three files."""
    (folder / "sub").mkdir(parents=True)
    for name in ("lonas_edge.json", "model", "sub/file"):
        (folder / name).write_text(what)


def found(folder: Path) -> str:
    """What `write_whole` wrote there, if it is all of it and nothing else; "absent" where there is nothing."""
    if not os.path.lexists(folder):
        return "absent"
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    whole = files.keys() == {"lonas_edge.json", "model", "sub/file"} and len(set(files.values())) == 1
    return files["model"] if whole else f"half: {files}"


def publish(output: Path) -> None:
    """What is stopped: a run that replaces an output, or writes the first."""
    with OutputDirectory(output, overwrite=True).open() as folder:
        folder.rmdir()
        write_whole(folder, "new")
