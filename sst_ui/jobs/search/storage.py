"""The databases that searches are kept in, opened so that several processes may use one at once."""

import random
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage
from optuna.storages._rdb.models import SCHEMA_VERSION, BaseModel
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, NullPool, create_engine, event, inspect
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from sst_ui import disk
from sst_ui.errors import UserError, shown
from sst_ui.paths import data_dir

T = TypeVar("T")
Way = Literal["minimize", "maximize"]

VERSIONS = "version_info"  # the table by which Optuna knows its databases
BEAT = 60  # seconds
SILENT = 300  # seconds after which a trial of another machine counts as lost
FAILURES = (SQLAlchemyError, StorageInternalError, ValueError, ImportError, OSError, RuntimeError)
PATIENCE = 60  # seconds that a process waits for another one to have written


def default_storage() -> str:
    """The SQLite URL of the searches in the user's data folder."""
    return f"sqlite:///{_default_file()}"


def _default_file() -> Path:
    return data_dir() / "searches.sqlite"


def open_study(
    url: str | None, name: str, directions: Sequence[Way]
) -> tuple[BaseStorage, optuna.Study]:
    """The storage and its study of this name, made where they are not there yet.

    Args:
        url: one of Optuna's, `memory` for none at all, or None for the default file.

    Raises:
        UserError: the storage cannot be used, or holds another search of this name. The default
            file is kept aside where it is damaged, so that the next search begins a new one.
    """
    try:
        return _patiently(lambda: _opened(url, name, directions))
    except DuplicatedStudyError:
        raise UserError(
            f"the storage holds another search named {name!r}; give another name."
        ) from None
    except FAILURES as error:
        raise unusable(url, error) from error


def _opened(
    url: str | None, name: str, directions: Sequence[Way]
) -> tuple[BaseStorage, optuna.Study]:
    storage = _storage(url)
    return storage, optuna.create_study(
        storage=storage, study_name=name, directions=directions, load_if_exists=True
    )


def _patiently(opened: Callable[[], T]) -> T:
    """What `opened` returns, once no other process is making the same tables or the same study."""
    tries = 10
    while True:
        try:
            return opened()
        except (OperationalError, IntegrityError) as error:
            tries -= 1
            if tries == 0 or not ("already exists" in str(error) or "UNIQUE" in str(error)):
                raise
            time.sleep(0.1 + 0.1 * random.random())


def _storage(url: str | None) -> BaseStorage:
    if url == "memory":
        return optuna.storages.InMemoryStorage()
    if url is None or not url:
        _default_file().parent.mkdir(parents=True, exist_ok=True)
        url = default_storage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if "://" not in url:
            raise ValueError("not a URL; write sqlite:///FILE, or another of Optuna's URLs")
        if url.startswith(("redis", "journal")):
            return optuna.storages.get_storage(url)
        file = url.startswith("sqlite")
        settings = {"connect_args": {"timeout": PATIENCE}} if file else {}
        _refuse_foreign(url, settings)
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs=settings,
            heartbeat_interval=BEAT,
            grace_period=SILENT,
            heartbeat_stale_trial_callback=_requeue,
        )
    if file:
        _one_at_a_time(storage.engine)
    return storage


def _refuse_foreign(url: str, settings: Mapping[str, Any]) -> None:
    """Leave another program's database alone: Optuna would add its tables to any.

    Raises:
        ValueError: it holds other tables, and none that says it has been Optuna's before.
    """
    url = url.format(SCHEMA_VERSION=SCHEMA_VERSION)  # as Optuna reads it
    try:
        engine = create_engine(url, poolclass=NullPool, **settings)
    except ImportError:
        return  # which Optuna says better
    there = inspect(engine)
    found = set(there.get_table_names())
    ours = {
        name
        for name, table in BaseModel.metadata.tables.items()
        if name in found
        and there.get_pk_constraint(name)["constrained_columns"]
        == [*table.primary_key.columns.keys()]
    }
    engine.dispose()
    others = sorted(found - ours - {"alembic_version"})
    if others and VERSIONS not in ours:  # some of ours alone: another process is making them
        raise ValueError(
            "nothing is added to another program's database; give one of its own. It has the "
            f"tables {', '.join(map(shown, others[:3]))}{' and others' * (len(others) > 3)}"
        )


def _one_at_a_time(engine: Engine) -> None:
    """Let SQLite's transactions exclude one another from their beginning, and wait for no disk.

    Optuna takes a trial from the queue with SELECT ... FOR UPDATE, which SQLite does not have: two
    processes that read at the same time would both take it. As in SQLAlchemy's manual, under
    "Serializable isolation / Savepoints / Transactional DDL".

    It also writes every setting of a trial in a transaction of its own, 35 of them a trial. With a
    write-ahead log none of them waits for the disk: a process that is killed loses nothing, a
    machine without power at most the newest trials.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # no BEGIN of its own
        with suppress(sqlite3.OperationalError):  # another process is at it: only slower
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # the connections that made the tables


def _requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put the settings of a trial that fell silent back in the queue, and nothing else of it.

    Optuna's `RetryHeartbeatStaleTrialCallback` copies its attributes too: the new trial would bear
    the name of the process that is gone, and whoever looks for lost trials would take it from the
    one that has just begun it.
    """
    study.enqueue_trial(trial.params)


@contextmanager
def told_of(url: str | None) -> Iterator[None]:
    """Tell of a storage that fails while a search uses it; what it has kept so far stays."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise unusable(url, error) from error


def unusable(url: str | None, error: BaseException) -> UserError:
    """What is wrong with a storage, in a line."""
    cause = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None)
    if cause is not None and disk.damaged(cause) and not url:
        return _set_aside(cause)
    said = error.strerror if isinstance(error, OSError) and error.strerror else cause or error
    words = " ".join(str(said).split())[:200].rstrip(".")
    home = "" if url else " Set SST_HOME to another folder; --storage memory keeps nothing."
    left = " It is left as it is; give another one." if disk.damaged(cause) else ""
    return UserError(f"the storage {url or default_storage()} cannot be used: {words}.{home}{left}")


def _set_aside(error: BaseException) -> UserError:
    path = _default_file()
    try:
        kept = disk.set_database_aside(path)
    except OSError as refused:
        return UserError(f"{path} is damaged ({error}); move it away ({refused.strerror}).")
    where = f"; it is kept as {kept}" if kept else ""
    return UserError(f"{path} was damaged ({error}){where}. Start the search again.")
