"""Where trials are kept: a file in the output directory, or any Optuna storage that several workers share."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lonas_edge.errors import LonasEdgeError, raise_all

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

IDENTITY = "lonas_edge"  # the study's attribute that says what it is of
_GRPC = "grpc://"
_CONNECT_SECONDS = 10
_PIP_NAMES = {
    "grpc": "grpcio protobuf",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}


def shown(url: str) -> str:
    """A storage's address without its password."""
    if url.startswith(_GRPC):
        return url
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return str(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return url


def open_storage(url: str) -> "BaseStorage":
    """Open a storage that workers share.

    Args:
        url: A database as SQLAlchemy names it (postgresql://…, mysql://…, sqlite:///FILE), or grpc://HOST:PORT, Optuna's proxy.

    Returns:
        The storage.

    Raises:
        LonasEdgeError: If it cannot be reached.
    """
    try:
        return _proxy(url.removeprefix(_GRPC)) if url.startswith(_GRPC) else _database(url)
    except ModuleNotFoundError as error:
        missing = _PIP_NAMES.get(str(error.name), error.name)
        raise LonasEdgeError(f"--storage {shown(url)}: its driver is not installed: pip install {missing}") from error
    except Exception as error:  # each database has exceptions of its own; all mean that it is not to be had
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LonasEdgeError(
            f"--storage {shown(url)}: cannot be reached: {reason}. Expected postgresql://…, mysql://…, sqlite:///FILE or "
            "grpc://HOST:PORT of a server that is running."
        ) from error


def _database(url: str) -> "BaseStorage":
    from optuna.storages import RDBStorage

    served = url.startswith(("postgresql", "mysql"))
    connect = {"connect_args": {"connect_timeout": _CONNECT_SECONDS}, "pool_pre_ping": True} if served else {}
    return RDBStorage(url, engine_kwargs=connect)


def _proxy(address: str) -> "BaseStorage":
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy

    host, _, port = address.rpartition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=int(port))
    proxy.wait_server_ready(timeout=_CONNECT_SECONDS)
    return proxy


def open_file(path: Path) -> "BaseStorage":
    """Open a file of trials that this process alone writes; a last line that a kill cut short is cut off.

    Args:
        path: The file.

    Returns:
        The storage.

    Raises:
        LonasEdgeError: If it is damaged.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Lock:
        """Freed with the process, where Optuna's own outlives a killed one."""

        def __init__(self) -> None:
            self._lock = FileLock(path.with_name(f"{path.name}.lock"))

        def acquire(self) -> bool:
            return bool(self._lock.acquire())

        def release(self) -> None:
            self._lock.release()

    _cut_off(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=Lock()))
    except (ValueError, KeyError, TypeError) as error:
        raise LonasEdgeError(f"{path}: damaged: {error}. Search again with --overwrite.") from error


def _cut_off(path: Path) -> None:
    with suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def open_study(storage: "BaseStorage", name: str, identity: Mapping[str, Any], sampler: "BaseSampler", where: str) -> "Study":
    """Open or begin a study of two objectives, both minimized.

    Args:
        storage: Where it is.
        name: Its name.
        identity: What it is of, as JSON: super-adapter, space, objectives, data.
        sampler: What draws its trials.
        where: What to call the storage in an error.

    Returns:
        The study.

    Raises:
        LonasEdgeError: If there is a study of something else under that name; what differs is listed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if name in optuna.get_all_study_names(storage):  # one that is there is read, nothing is written
            study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        else:
            study = optuna.create_study(
                study_name=name, storage=storage, directions=["minimize"] * 2, sampler=sampler, load_if_exists=True
            )
        found = study.user_attrs.get(IDENTITY)
        if found is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(IDENTITY, dict(identity))
            found = identity
    except Exception as error:  # see `open_storage`
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LonasEdgeError(f"{where}: the study {name!r} cannot be opened: {reason}") from error
    raise_all(
        f"{where}: the study {name!r} is of another search:",
        _differences(found, identity),
        "Choose another --output and --study, or give the options that it was begun with.",
    )
    return study


def _differences(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> list[str]:
    if found is None:
        return ["another program's: it does not say what it is of"]
    return [
        f"{key.replace('_', ' ')}: it has {found.get(key)}, this search {wanted.get(key)}"
        for key in {**wanted, **found}
        if found.get(key) != wanted.get(key)
    ]
