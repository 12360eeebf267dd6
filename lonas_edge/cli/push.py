"""`lonas-edge push`: publish an exported directory or a super-adapter on the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.cli.command import command
from lonas_edge.cli.groups import JsonOptions
from lonas_edge.cli.importing import importing
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.options import option

if TYPE_CHECKING:
    from lonas_edge.exporting.publish import Upload


@dataclass(frozen=True, kw_only=True)
class PushOptions(JsonOptions):
    """What is published, and where."""

    folder: Path = option(argument=True, flag="dir", help="Directory that `lonas-edge export` or `lonas-edge train` wrote.")
    repo: str = option(argument=True, help="Model repository on the hub, owner/name.")
    private: bool = option(False, help="Make a new repository private.")
    overwrite: bool = option(False, help="Replace what lonas-edge pushed there before, in one commit.")
    dry_run: bool = option(False, help="Check the directory and list its files, without a connection to the hub.")
    message: str | None = option(None, help="Commit message.", unset="the model card's title")


@command(PushOptions)
def run(options: PushOptions) -> None:
    """Publish an exported directory or a super-adapter, with its model card, as a model repository of the hub.

    The files are checked first: complete, no secrets, no paths of this machine. They appear in one commit, or not at all.
    The token is that of `hf auth login`, or HF_TOKEN.
    """
    with progress(left=False) as report:
        with importing():
            from lonas_edge.exporting.publish import prepare, push, require_name
        require_name(options.repo)
        report("Checking the files", None)
        upload, repo = prepare(options.folder), options.repo
        if options.dry_run:
            done = None
        else:
            done = push(upload, repo, options.private, options.overwrite, options.message, lambda step: report(step, None))
    if options.json:
        published = {"url": done.url if done else None, "commit": done.commit if done else None}
        print(json.dumps({"repository": repo, **published, "files": upload.files}, indent=2))
        return
    _print(upload, repo)
    console().print("nothing was sent (--dry-run)" if done is None else f"{done.url} {done.commit[:12]}", soft_wrap=True)


def _print(upload: "Upload", repo_id: str) -> None:
    from rich.table import Table

    table = Table(title=f"{upload.folder} → {repo_id}", title_justify="left")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, size in upload.files.items():
        table.add_row(name, f"{size:,}")
    table.add_section()
    table.add_row(f"{len(upload.files)} files", f"{sum(upload.files.values()):,}")
    console().print(table)
