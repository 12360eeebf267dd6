"""Outputs as tests write and read them."""

import os
from pathlib import Path

from lonas_edge.output import OutputDirectory


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_files(folder: Path, content: str) -> None:
    """Write an output of lonas-edge, three files of this content."""
    (folder / "sub").mkdir(parents=True)
    for name in ("lonas_edge.json", "model", "sub/file"):
        (folder / name).write_text(content)


def content_of(folder: Path) -> str:
    """The content that `write_files` wrote; "absent" without an output, "partial: …" if files differ or are missing."""
    if not os.path.lexists(folder):
        return "absent"
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    complete = files.keys() == {"lonas_edge.json", "model", "sub/file"} and len(set(files.values())) == 1
    return files["model"] if complete else f"partial: {files}"


def publish(output: Path) -> None:
    """Publish a new output, or replace one."""
    with OutputDirectory(output, overwrite=True).open() as folder:
        folder.rmdir()
        write_files(folder, "new")
