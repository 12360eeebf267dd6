"""The storage of a search's trials: a journal file of one process, or a database that several workers share."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import DatabaseError

from lonas_edge.errors import LonasEdgeError, one_line

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60  # of a worker; the trial of a silent one is queued again
_CONNECT_SECONDS, _TABLES_SECONDS = 10, 3


def open_storage(url: str) -> BaseStorage:
    """Open a database that workers share, as SQLAlchemy names it: postgresql+psycopg://…, sqlite:///FILE."""
    engine = {"connect_args": {"connect_timeout": _CONNECT_SECONDS}, "pool_pre_ping": True}
    settings: dict[str, Any] = {
        "engine_kwargs": {} if url.startswith("sqlite") else engine,
        "heartbeat_interval": HEARTBEAT_SECONDS,
        "grace_period": GRACE_SECONDS,
        "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(),
    }
    try:
        try:
            return RDBStorage(url, **settings)
        except DatabaseError:
            time.sleep(_TABLES_SECONDS)  # another worker may create the tables at this moment
            return RDBStorage(url, **settings)
    except ModuleNotFoundError as error:
        raise LonasEdgeError(f"--storage: its driver is missing: {error}. Run: pip install 'lonas-edge[postgres]'") from error
    except Exception as error:  # each database has its own exceptions
        hint = "Expected postgresql+psycopg://… or sqlite:///FILE."
        raise LonasEdgeError(f"--storage: cannot connect: {one_line(str(error))}. {hint}") from error


def open_journal(path: Path) -> BaseStorage:
    """Open a journal file that only this process uses. An incomplete last line, of a killed process, is removed."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # Optuna's lock outlives a killed process
    with suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
    try:
        # Optuna's default lock is a symbolic link, which Windows and FAT refuse (5.0)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except Exception as error:  # Optuna checks nothing: anything can come
        raise LonasEdgeError(f"{path}: damaged: {one_line(str(error))}. Search again with --overwrite.") from error
