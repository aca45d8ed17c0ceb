"""The run history: every applied recipe with its numbers, in one SQLite file of the user's.

Why SQLite and not trackio, the ecosystem's own tracker: trackio follows numbers over the steps of a
training run. It has no way to replace a run's row, to search inside a configuration, or to take a
deletion back; `init` starts a web server; and it brings one (starlette, uvicorn, gradio_client)
below the screens, where this house has none. SQLite comes with Python.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.jobs.history.records import Comparison, Record, compare, record, words_of
from sst_ui.metrics.results import MetricResult
from sst_ui.paths import data_dir
from sst_ui.program import program
from sst_ui.recipe import Recipe

T = TypeVar("T")
log = logging.getLogger(__name__)
VERSION = 2  # of the file's layout, in its user_version
WAIT = 15.0  # seconds for another process that is writing
SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    measured TEXT NOT NULL,
    recipe TEXT NOT NULL,
    metrics TEXT NOT NULL,
    words TEXT NOT NULL,
    place INTEGER NOT NULL,
    UNIQUE (model, digest, measured)
);
CREATE INDEX runs_place ON runs (place);
"""
# A file of the first layout had nothing but the clock to go by, which may be set back.
PLACED = "SELECT id, row_number() OVER (ORDER BY time, id) AS place FROM runs"
COLUMNS = "id, time, model, name, digest, recipe, metrics, place"
SELECT = f"SELECT {COLUMNS} FROM runs WHERE"
NEWEST = "ORDER BY place DESC, id DESC"


class Damaged(UserError):
    """The file was no history that can be read; it is kept aside, and a new one may begin."""


class History:
    """The history in a file. Safe from any thread and any number of processes (WAL).

    Every call opens the file anew and leaves it closed, so that a `History` can be shared.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """`path` None is `history.sqlite` in the user's data folder; it is made when needed."""
        self._path = path

    @cached_property
    def path(self) -> Path:
        """The file, there or not.

        Raises:
            UserError: there is no folder for it.
        """
        return Path(self._path) if self._path is not None else data_dir() / "history.sqlite"

    def add(self, recipe: Recipe, model: str, results: Sequence[MetricResult] = ()) -> int:
        """Remember an applied recipe, or that it was applied again.

        The same recipe on the same model under the same evaluation is one run: its time becomes
        now, and results, where there are any, replace the earlier ones.

        Returns:
            The run's id.

        Raises:
            UserError: the file cannot be written, or is no history of ours. One that is damaged is
            kept aside with a warning, and this run begins a new one.
        """
        new = record(recipe, model, results)
        return self._anew(lambda: self._add(new))

    def _add(self, new: Record) -> int:
        with self._writing() as db:
            key = (new.model, new.digest, new.measured)
            found = db.execute(
                f"{SELECT} model = ? AND digest = ? AND measured = ?", key
            ).fetchone()
            if found is None:
                return self._insert(db, new)
            old = _record(found)
            kept = Record(
                old.id, new.time, new.model, new.name or old.name, new.digest, new.text,
                new.metrics or old.metrics, new.place,
            )  # fmt: skip
            db.execute("DELETE FROM runs WHERE id = ?", (old.id,))
            return self._insert(db, kept)

    def list(
        self, search: str = "", model: str | None = None, limit: int | None = 100
    ) -> list[Record]:
        """Runs, newest first.

        Args:
            search: words that must all occur in name, model, digest, recipe or metrics.
            model: only runs on this model.
            limit: at most so many; None for all.
        """
        wanted = ["1"]
        values: list[str | int] = []
        for word in search.casefold().split():
            wanted.append("instr(words, ?) > 0")
            values.append(word)
        if model is not None:
            wanted.append("model = ?")
            values.append(model)
        query = f"{SELECT} {' AND '.join(wanted)} {NEWEST}"
        if limit is not None:
            query += " LIMIT ?"
            values.append(limit)
        with self._open(reading=True) as db:
            return [_record(row) for row in db.execute(query, values)] if db else []

    def get(self, run: int | str) -> Record:
        """A run by its id, or the newest one whose digest begins so.

        Raises:
            UserError: there is no such run.
        """
        text = str(run).strip().removeprefix("#")
        with self._open(reading=True) as db:
            found = None
            if db and text.isascii() and text.isdigit() and len(text) < 12:
                found = db.execute(f"{SELECT} id = ?", (text,)).fetchone()
            if db and found is None and len(text) >= 4 and text.isalnum():
                query = f"{SELECT} digest GLOB ? {NEWEST}"
                found = db.execute(query, (text.lower() + "*",)).fetchone()
        if found is None:
            raise UserError(
                f"the history has no run {str(run)!r}; give a number or a recipe's hash "
                f"(four digits of it or more), as `{program()} history` lists them."
            )
        return _record(found)

    def compare(self, runs: Sequence[int | str]) -> Comparison:
        """Metrics of several runs side by side, and what differs in their recipes."""
        return compare([self.get(run) for run in runs])

    def delete(self, runs: Sequence[int | str]) -> tuple[Record, ...]:
        """Forget runs; all of them or, where one is unknown, none. `restore` takes it back."""
        gone = tuple({r.id: r for r in map(self.get, runs)}.values())
        with self._writing() as db:
            db.executemany("DELETE FROM runs WHERE id = ?", [(r.id,) for r in gone])
        return gone

    def restore(self, records: Sequence[Record]) -> None:
        """Put deleted runs back where they were; a run made anew in the meantime stays."""
        self._anew(lambda: self._restore(records))

    def _restore(self, records: Sequence[Record]) -> None:
        with self._writing() as db:
            for old in records:
                key = (old.id, old.model, old.digest, old.measured)
                taken = "id = ? OR (model = ? AND digest = ? AND measured = ?)"
                if db.execute(f"SELECT 1 FROM runs WHERE {taken}", key).fetchone() is None:
                    self._insert(db, old)

    @staticmethod
    def _anew(write: Callable[[], T]) -> T:
        """What `write` returns; where the file was damaged, in a new one: nothing new is lost."""
        try:
            return write()
        except Damaged as error:
            log.warning("%s", error)
            return write()

    @staticmethod
    def _insert(db: sqlite3.Connection, row: Record) -> int:
        (last,) = db.execute("SELECT coalesce(max(place), 0) FROM runs").fetchone()
        values = (
            row.id or None, row.time, row.model, row.name, row.digest, row.measured, row.text,
            json.dumps(list(row.metrics), ensure_ascii=False), words_of(row),
            row.place or last + 1,
        )  # fmt: skip
        added = db.execute(f"INSERT INTO runs VALUES ({', '.join('?' * 10)})", values)
        assert added.lastrowid is not None
        return added.lastrowid

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            assert db is not None  # only a reader may find nothing
            yield db

    @contextmanager
    def _open(self, reading: bool = False) -> Iterator[sqlite3.Connection | None]:
        """A transaction on the file; None where there is nothing to read yet."""
        try:
            if reading and not self._begun():
                yield None
                return
            if not reading:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connected(reading)) as db:
                db.execute("BEGIN" if reading else "BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    with suppress(sqlite3.Error):  # SQLite has taken it back itself
                        db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if disk.damaged(error):
                raise self._set_aside(error) from error
            if disk.refusal(error) is not None:
                raise self._refused(str(error)) from error
            raise UserError(f"the run history {self.path} cannot be used now: {error}.") from error
        except json.JSONDecodeError as error:
            raise UserError(self._broken(str(error))) from error
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from error

    def _begun(self) -> bool:
        """Whether there is anything to read; a file without a byte is one that was never begun."""
        try:
            return self.path.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _connected(self, reading: bool) -> sqlite3.Connection:
        """The file, opened and of our layout; one on a disk without rights can still be read."""
        db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
        try:
            try:
                self._prepare(db)
                if reading:  # a file that other processes may write to leaves notes beside it
                    db.execute("SELECT 1 FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as error:
                if not reading or disk.refusal(error) is None:
                    raise
                db.close()
                name = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
                db = sqlite3.connect(name, uri=True, isolation_level=None)
                self._prepare(db, fixed=True)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.DatabaseError) -> UserError:
        """Keep a damaged file under another name, unless another process has done so already."""
        try:
            kept = disk.set_database_aside(self.path)
        except OSError as refused:
            return UserError(
                f"{self._broken(str(error))} It cannot be moved here: {refused.strerror}."
            )
        if kept is None:
            return Damaged(f"the run history {self.path} was damaged; a new one replaces it.")
        return Damaged(
            f"the run history {self.path} is damaged ({error}); it is kept as {kept}, and a new "
            "one is started."
        )

    def _refused(self, why: str) -> UserError:
        return UserError(
            f"the run history {self.path} cannot be written: {why}, so runs are not kept. Set "
            "SST_HOME to a writable folder."
        )

    def _prepare(self, db: sqlite3.Connection, fixed: bool = False) -> None:
        """Make the table in a new file, bring an older one up to date; refuse one that is not ours.

        Args:
            fixed: the file cannot be written to; what it lacks is kept beside it, in memory.
        """
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise UserError(
                f"the run history {self.path} was written by a newer studio (layout {version}, "
                f"this is {VERSION}); update, or set SST_HOME to another folder."
            )
        if version == VERSION:
            return
        if version == 1 and fixed:
            db.execute(f"CREATE TEMP TABLE placed AS {PLACED}")
            db.execute("CREATE TEMP VIEW runs AS SELECT * FROM main.runs JOIN placed USING (id)")
            return
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")  # another process may be making it at this moment
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            if db.execute("SELECT 1 FROM sqlite_master").fetchone():
                db.execute("ROLLBACK")
                raise UserError(self._broken("it holds another program's tables"))
            for statement in SCHEMA.split(";"):
                db.execute(statement)
        if version == 1:
            places = db.execute(PLACED).fetchall()
            db.execute("ALTER TABLE runs ADD COLUMN place INTEGER NOT NULL DEFAULT 0")
            db.executemany("UPDATE runs SET place = ?2 WHERE id = ?1", places)
            db.execute("DROP INDEX IF EXISTS runs_time")
            db.execute("CREATE INDEX runs_place ON runs (place)")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")

    def _broken(self, why: str) -> str:
        return (
            f"the run history {self.path} cannot be read ({why}). Move that file away to start a "
            "new one; the studio does not touch it."
        )


def remember(recipe: Recipe, model: str, results: Sequence[MetricResult] = ()) -> str:
    """Add to the user's history; what went wrong comes back as a sentence, '' where nothing did.

    A run that succeeded must not fail because its history could not be written.
    """
    try:
        History().add(recipe, model, results)
    except UserError as error:
        return str(error)
    return ""


def known_results(recipe: Recipe) -> tuple[MetricResult, ...]:
    """The newest numbers that the user's history has for a recipe, for its model card."""
    try:
        rows = History().list(search=recipe.digest(), limit=20)
    except UserError as error:
        if isinstance(error, Damaged):  # said once, whoever meets it first
            log.warning("%s", error)
        return ()
    found = (r for r in rows if r.digest == recipe.digest() and r.metrics)
    return next((r.results() for r in found), ())


def _record(row: tuple) -> Record:
    number, time, model, name, digest, text, metrics, place = row
    return Record(number, time, model, name, digest, text, tuple(json.loads(metrics)), place)
