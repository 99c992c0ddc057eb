"""Opens what ``--storage`` names: a storage of Optuna that several processes, and machines, may work on at once.

===================  ===================================================================================================
``sqlite:///PATH``   a file, for the processes of one machine
``journal:FILE``     a file that only grows, also for machines with a common file system that knows ``flock``
``postgresql://...`` a server, for several machines; any other URL of SQLAlchemy works likewise
``grpc://HOST:PORT`` Optuna's proxy (``optuna.storages.run_grpc_proxy_server``) before one of the databases
===================  ===================================================================================================

Each of them creates trials and changes the state of a trial atomically, which is all that :mod:`harness.sweep.claims`
builds on. SQLite does so only because every transaction here starts as BEGIN IMMEDIATE: Optuna locks the row of a trial
by SELECT ... FOR UPDATE, which SQLite ignores, so that two processes would win the same trial.
"""

from __future__ import annotations

import abc
import logging
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from harness.errors import UserError, one_line
from harness.sweep.journal import open_journal

FORMS = "sqlite:///PATH, journal:FILE, postgresql://USER@HOST/DATABASE or grpc://HOST:PORT"
PASSING = (OperationalError, InterfaceError, InternalError, PendingRollbackError, sqlalchemy.exc.TimeoutError)
SQLITE_BUSY_SECONDS = 60
IDLE_TRANSACTION_SECONDS = 30
CONNECT_SECONDS = 10
PROXY_PORT = 13000
"""The port that Optuna's proxy takes if not told otherwise."""

_log = logging.getLogger(__name__)


def _every_method(cls: type[PatientStorage]) -> type[PatientStorage]:
    """Gives a class all public methods of a storage, each of them by its ``call``."""

    def method(name: str) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: self.call(name, *args, **kwargs)

    for name in dir(BaseStorage):
        if not name.startswith("_"):
            setattr(cls, name, method(name))
    return abc.update_abstractmethods(cls)


@_every_method
class PatientStorage(BaseStorage):
    """A storage that tries again for a while where the one behind it does not answer, so that no trial is lost by that.

    Whatever is tried again may have been done before the answer was lost: a trial may be created twice, and a change
    of state may find itself done.

    Args:
        storage: the storage behind it.
        patience: seconds after which a call gives up and raises what the storage raised.
    """

    def __init__(self, storage: BaseStorage, patience: float = 600.0) -> None:
        self.storage = storage
        self._patience = patience

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the storage behind, again and again with growing pauses where it does not answer."""
        give_up = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                return getattr(self.storage, name)(*args, **kwargs)
            except storage_errors() as error:
                if not _may_pass(error) or time.monotonic() > give_up:
                    raise
                if pause == 0.1:
                    _log.warning("the storage does not answer (%s); trying again", _reason(error))
            time.sleep(pause * random.uniform(0.5, 1.0))  # many workers miss the same server
            pause = min(2 * pause, 10.0)


def open_storage(text: str) -> BaseStorage:
    """Opens the storage that ``--storage TEXT`` names, which is created where it is a file that does not exist.

    Raises:
        UserError: it cannot be opened or does not answer.
    """
    scheme = text.partition(":")[0]
    storage = {"journal": _open_journal, "grpc": _open_proxy}.get(scheme, _open_database)(text)
    return PatientStorage(storage)


def storage_errors() -> tuple[type[Exception], ...]:
    """Returns what a storage that was opened raises where it does not answer."""
    return (StorageInternalError, *PASSING, OSError, *_rpc_errors())


def without_password(text: str) -> str:
    """Returns a storage's URL as it may be shown."""
    text = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


def _refused(text: str, what: str, do: str) -> UserError:
    return UserError(f"--storage {without_password(text)}: {what}: {do}")


def _folder_of(text: str, file: str) -> Path:
    """Returns the path of a storage's file, whose folder exists from now on."""
    path = Path(file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the folder {path.parent} cannot be made ({error.strerror})"
        raise _refused(text, what, "name a file in a folder that you may write to") from error
    return path


def _open_journal(text: str) -> BaseStorage:
    name = text.removeprefix("journal:")
    if not name:
        raise _refused(text, "no file is named", "give journal:FILE")
    path = _folder_of(text, name)
    try:
        return open_journal(path)
    except OSError as error:
        what = f"the file cannot be opened ({error.strerror})"
        raise _refused(text, what, "name a file that you may read and write") from error
    except ValueError as error:
        raise _refused(text, one_line(error), "name another file, also one that does not exist yet") from error


def _open_proxy(text: str) -> BaseStorage:
    try:
        address = urlsplit(text)
        host, port = address.hostname, address.port or PROXY_PORT
    except ValueError:
        host = None
    if not host:
        raise _refused(text, "it names no host and port", "give grpc://HOST:PORT")
    start = (
        "start Optuna's proxy there (optuna.storages.run_grpc_proxy_server), or name the host and port where it runs"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=CONNECT_SECONDS)
        storage.get_all_studies()
    except ImportError as error:
        what = f"Optuna's proxy needs Python packages that are missing ({_reason(error)})"
        raise _refused(text, what, "pip install grpcio protobuf") from error
    except ConnectionError as error:
        raise _refused(text, "no server answers", start) from error
    except _rpc_errors() as error:
        raise _refused(text, f"what answers is no proxy of a storage that works ({_reason(error)})", start) from error
    return storage


def _open_database(text: str) -> BaseStorage:
    try:
        url = sqlalchemy.make_url(text)
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect()
    except (ArgumentError, ValueError) as error:
        raise _refused(text, "it names no storage that is known here", f"give {FORMS}") from error
    except ImportError as error:
        raise _no_driver(text, error) from error
    options: dict[str, Any] = {"pool_pre_ping": True}
    do = "check that the server runs, and that the URL names it, a user who may create tables, and a database"
    if url.get_backend_name() == "sqlite":
        if url.host or url.database in (None, "", ":memory:"):
            raise _refused(text, "it names no file", "give sqlite:///PATH, with four slashes before an absolute path")
        url = url.set(database=str(_folder_of(text, url.database)))
        options = {"connect_args": {"timeout": SQLITE_BUSY_SECONDS}}
        do = "name a file that you may read and write and that is a database of Optuna or does not exist yet"
    elif "@" in (url.host or ""):
        raise _refused(text, "its password holds an @", "write it as %40")
    elif url.get_driver_name() in ("psycopg", "psycopg2"):
        options["connect_args"] = _give_up_dead_connections(url)
    try:
        return _set_up(url, options)
    except ImportError as error:
        raise _no_driver(text, error) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        what = f"it cannot be opened ({_reason(error)})"
        raise _refused(text, what.replace(str(url.password or "\0"), "***"), do) from error
    except RuntimeError as error:  # Optuna's word for tables of another version of Optuna
        raise _refused(text, one_line(error), "or name another database") from error


def _give_up_dead_connections(url: sqlalchemy.URL) -> dict[str, Any]:
    """What PostgreSQL's client is told if the URL does not say it: seconds until a machine that is gone is an error."""
    told = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # milliseconds
    }
    return {name: value for name, value in told.items() if name not in url.query}


def _set_up(url: sqlalchemy.URL, options: dict[str, Any]) -> BaseStorage:
    """Creates Optuna's tables where they are missing, and asks for the studies as a check."""
    # Optuna takes the URL for a template of str.format, in which braces are doubled.
    template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    for attempt in range(20):
        try:
            storage = RDBStorage(template, engine_kwargs=dict(options))
            break
        except (DatabaseError, StorageInternalError) as error:
            # Others create the same tables at the same moment; each step is done or not, so that doing it again helps.
            if attempt == 19 or not _others_were_faster(error):
                raise
            time.sleep(random.uniform(0.05, 0.2))
    if url.get_backend_name() == "sqlite":
        begin_immediate(storage.engine)
    elif url.get_backend_name() == "postgresql":
        _give_up_dead_transactions(storage.engine)
    cached = optuna.storages.get_storage(storage)
    cached.get_all_studies()
    return cached


def begin_immediate(engine: sqlalchemy.Engine) -> None:
    """Makes each transaction on SQLite take the write lock when it begins, so that nothing read in it can be stale.

    Source: "Serializable isolation / Savepoints / Transactional DDL" in SQLAlchemy's pages on SQLite.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before do otherwise


def _give_up_dead_transactions(engine: sqlalchemy.Engine) -> None:
    """Makes the server end a transaction whose process stands still, since it may hold the lock of a trial's row."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def set_timeout(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET idle_in_transaction_session_timeout = {1000 * IDLE_TRANSACTION_SECONDS}")
        connection.commit()

    engine.dispose()


def _others_were_faster(error: Exception) -> bool:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, IntegrityError) or any(
        word in str(cause) for word in ("already exists", "duplicate key", "locked", "no such table")
    )


def _no_driver(text: str, error: ImportError) -> UserError:
    reason = _reason(error.__cause__ or error)
    do = "pip install 'psycopg[binary]'" if text.startswith("postgresql:") else "install it, or name another storage"
    return _refused(text, f"the driver of this database cannot be imported ({reason})", do)


def _rpc_errors() -> tuple[type[Exception], ...]:
    """What gRPC raises, nothing where it has not been imported."""
    grpc = sys.modules.get("grpc")
    return (grpc.RpcError,) if grpc else ()


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed a moment later."""
    return not isinstance(error, StorageInternalError) or isinstance(error.__cause__, PASSING)


def _reason(error: BaseException) -> str:
    """The first line of what lies under an error of a storage."""
    if isinstance(error, StorageInternalError):
        error = error.__cause__ or error
    if isinstance(error, _rpc_errors()):
        return str(error.details() or error.code())
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else one_line(error)
    error = getattr(error, "orig", None) or error
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
