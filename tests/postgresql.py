"""A temporary PostgreSQL server, run by an ordinary user with the programs of Debian's package `postgresql`."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a server with an empty database and yield its URL; skip the test if PostgreSQL is not installed."""
    folders = [Path(path).parent for path in filter(None, [shutil.which("initdb")])]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)
    if programs is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    user = _ordinary_user()
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        if user:
            shutil.chown(folder, user)
        options = {"user": user, "cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        data = f"{folder}/data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "lonas", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"],
            check=True,
            **options,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port)], **options
        )
        try:
            _wait(server, port)
            yield f"postgresql+psycopg://lonas@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()  # which waits for its clients
            try:
                server.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


def _ordinary_user() -> str | None:
    """The user that runs the server, which refuses root; None for the current user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd  # not on Windows

    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _wait(server: "subprocess.Popen[str]", port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, server.communicate()[0]
            time.sleep(0.1)
