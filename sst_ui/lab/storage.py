"""The databases that searches are kept in: opened so that several processes may use one at once.

Knows Optuna's storages and what SQLite needs. Does not know what a trial holds.
"""

import random
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from sst_ui.errors import UserError
from sst_ui.paths import data_dir

T = TypeVar("T")

BEAT = 60  # seconds
SILENT = 300  # seconds after which a trial of another machine counts as lost
PATIENCE = 60  # seconds that a process waits for another one to have written


def default_storage() -> str:
    """The SQLite URL of the searches in the user's data folder."""
    folder = data_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'searches.sqlite'}"


def open_study(
    url: str | None, name: str, directions: Sequence[str]
) -> tuple[BaseStorage, optuna.Study]:
    """The storage and its study of this name, made where they are not there yet.

    Args:
        url: one of Optuna's, `memory` for none at all, or None for the default file.

    Raises:
        UserError: the storage cannot be used, or holds another search of this name.
    """
    try:
        return _patiently(lambda: _opened(url, name, directions))
    except DuplicatedStudyError:
        raise UserError(
            f"the storage holds another search named {name!r}; give another name."
        ) from None
    except (SQLAlchemyError, StorageInternalError, ValueError, ImportError, OSError) as error:
        raise _unusable(url, error) from error


def names(url: str | None = None) -> list[str]:
    """The searches that a storage holds."""
    try:
        return _patiently(lambda: optuna.get_all_study_names(_storage(url)))
    except Exception as error:
        raise _unusable(url, error) from error


def _opened(
    url: str | None, name: str, directions: Sequence[str]
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
    url = url or default_storage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if "://" not in url:
            raise ValueError("not a URL; write sqlite:///FILE, or another of Optuna's URLs")
        if url.startswith(("redis", "journal")):
            return optuna.storages.get_storage(url)
        file = url.startswith("sqlite")
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": PATIENCE}} if file else None,
            heartbeat_interval=BEAT,
            grace_period=SILENT,
            heartbeat_stale_trial_callback=_requeue,
        )
    if file:
        _one_at_a_time(storage.engine)
    return storage


def _one_at_a_time(engine: Engine) -> None:
    """Let SQLite's transactions exclude one another from their beginning.

    Optuna takes a trial from the queue with SELECT ... FOR UPDATE, which SQLite does not have: two
    processes that read at the same time would both take it. As in SQLAlchemy's manual, under
    "Serializable isolation / Savepoints / Transactional DDL".
    """

    @event.listens_for(engine, "connect")
    def _no_begin_of_its_own(connection, _record) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # the connections that made the tables


def _requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    study.enqueue_trial(trial.params)


def _unusable(url: str | None, error: BaseException) -> UserError:
    words = " ".join(str(error).split())[:200]
    return UserError(f"the storage {url or default_storage()} cannot be used: {words}")
