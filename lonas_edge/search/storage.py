"""The Optuna study of a search: a journal file of one process, or a database that several workers share."""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lonas_edge.errors import LonasEdgeError, raise_all

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from lonas_edge.space.search_space import SearchSettings

IDENTITY = "lonas_edge"  # study attribute with the identity of the search
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60  # of a worker; the trial of a silent one is queued again
_CONNECT_SECONDS = 10
_TABLES_EXIST, _TABLES_SECONDS = re.compile("already exists|unique", re.IGNORECASE), 3
_PIP_NAMES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def shown(url: str) -> str:
    """Return a storage URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return str(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return url


def open_storage(url: str) -> "BaseStorage":
    """Open a database that workers share, as SQLAlchemy names it: postgresql+psycopg://…, sqlite:///FILE."""
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from sqlalchemy.exc import DatabaseError

    settings = {
        "engine_kwargs": {"connect_args": {"connect_timeout": _CONNECT_SECONDS}, "pool_pre_ping": True},
        "heartbeat_interval": HEARTBEAT_SECONDS,
        "grace_period": GRACE_SECONDS,
        "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(),
    }
    settings |= {"engine_kwargs": {}} if url.startswith("sqlite") else {}
    try:
        try:
            return RDBStorage(url, **settings)
        except DatabaseError as error:
            if not _TABLES_EXIST.search(str(error)):
                raise
            time.sleep(_TABLES_SECONDS)  # another worker creates the tables at this moment
            return RDBStorage(url, **settings)
    except ModuleNotFoundError as error:
        missing = _PIP_NAMES.get(str(error.name), error.name)
        raise LonasEdgeError(f"--storage {shown(url)}: its driver is missing. Run: pip install {missing}") from error
    except Exception as error:  # each database has its own exceptions
        raise LonasEdgeError(
            f"--storage {shown(url)}: cannot connect: {_first_line(error)}. Expected postgresql+psycopg://… or sqlite:///FILE."
        ) from error


def open_journal(path: Path) -> "BaseStorage":
    """Open a journal file that only this process uses. An incomplete last line, of a killed process, is removed."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # Optuna's lock outlives a killed process
    with suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
    try:
        # Optuna's default lock is a symbolic link, which Windows and FAT refuse (5.0)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except Exception as error:  # Optuna checks nothing: anything can come
        raise LonasEdgeError(f"{path}: damaged: {_first_line(error)}. Search again with --overwrite.") from error


def open_study(
    storage: "BaseStorage",
    name: str,
    identity: Mapping[str, Any],
    settings: "SearchSettings",
    where: str,
    files: Mapping[str, object] = MappingProxyType({}),
) -> "Study":
    """Open or create a study of two minimized objectives, sampled by NSGA-II."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
        else:
            study = optuna.create_study(study_name=name, storage=storage, directions=["minimize"] * 2, load_if_exists=True)
        trials = study.get_trials(deepcopy=False)
        if IDENTITY not in study.user_attrs and not trials:
            study.set_user_attr(IDENTITY, dict(identity))
        stored = study.user_attrs.get(IDENTITY)
    except Exception as error:  # see `open_storage`
        raise LonasEdgeError(f"{where}: cannot open the study {name!r}: {_first_line(error)}") from error
    raise_all(
        f"{where}: the study {name!r} belongs to another search:",
        differences(stored, identity, files),
        "Choose another --output and --study, or use the options that it was started with.",
    )
    study.sampler = optuna.samplers.NSGAIISampler(
        population_size=settings.population,
        crossover_prob=settings.crossover_prob,
        mutation_prob=settings.mutation_prob,
        seed=(settings.seed + len(trials)) % 2**32,  # a continued study does not repeat its first draws
    )
    return study


def differences(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], files: Mapping[str, object] = MappingProxyType({})
) -> list[str]:
    """Return the settings in which two searches differ, for an error; `files` are those behind a setting."""
    if before is None:
        return ["it was created by another program"]

    def label(key: str) -> str:
        return key.replace("_", " ") + (f" ({files[key]})" if key in files else "")

    return [
        f"{label(key)}: it has {before.get(key)}, this search {now.get(key)}"
        for key in {**now, **before}
        if before.get(key) != now.get(key)
    ]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
