"""`lonas-edge push`: an exported directory or a super-adapter, published on the hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.cli.importing import importing
from lonas_edge.cli.options import USER_PATH, JsonOption
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console

if TYPE_CHECKING:
    from lonas_edge.exporting.publish import Upload


def command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            click_type=USER_PATH,
            help="A directory that `lonas-edge export` or `lonas-edge train` wrote.",
            show_default=False,
        ),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="The repository, owner/name.", show_default=False)],
    private: Annotated[
        bool, typer.Option("--private", help="Make the new repository private. Default: as the owner's new ones are.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what lonas-edge pushed there before, in the same commit."),
    ] = False,
    message: Annotated[
        str | None, typer.Option("--message", help="Message of the commit. Default: the model card's title.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the directory and list what would be sent; the hub is not asked.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish DIR, an exported directory or a super-adapter with its model card, as the model repository REPO_ID of the hub.

    The files are checked first: whole, no secrets, no paths of this machine. They appear in one commit, or not at all.
    The token is that of `hf auth login`, or HF_TOKEN.
    """
    with progress(left=False) as report:
        with importing():
            from lonas_edge.exporting.publish import prepare, push
        report("Checking the files", None)
        upload = prepare(folder)
        done = None if dry_run else push(upload, repo_id, private, overwrite, message, lambda what: report(what, None))
    if as_json:
        published = {"url": done.url if done else None, "commit": done.commit if done else None}
        print(json.dumps({"repository": repo_id, **published, "files": upload.files}, indent=2))
        return
    _print(upload, repo_id)
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
