"""Where a window's runs are kept: in the user's own history, or, on a Space, in the browser.

On a public Space many people share one program; each of them sees only what their own browser hands
in with every event.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sst_ui.errors import UserError
from sst_ui.jobs.history.records import Record, record
from sst_ui.jobs.history.store import Damaged, History
from sst_ui.metrics.results import MetricResult
from sst_ui.recipe import Recipe

SHOWN = 200  # runs in the list
KEPT = 40  # runs that a browser keeps
LIFE = 3600  # seconds that a shared program keeps what a window found or exported
HERE = ("127.0.0.1", "localhost", "::1")


def shared() -> bool:
    """Whether others may use this program: on a Hugging Face Space, behind Gradio's public link,
    bound beyond this machine, or behind a proxy.

    The address is read from GRADIO_SERVER_NAME, where `app.py --host` puts it too. A proxy on this
    machine cannot be seen, so its owner says so: with SST_SHARED, or by a path it has.
    """
    host = os.environ.get("GRADIO_SERVER_NAME", HERE[0])
    link = os.environ.get("GRADIO_SHARE", "").lower() == "true"
    proxy = os.environ.get("SST_SHARED", "").lower() in ("1", "true", "yes")
    proxy = proxy or os.environ.get("GRADIO_ROOT_PATH", "").strip("/") != ""
    return bool(os.environ.get("SPACE_ID")) or link or proxy or host not in HERE


@dataclass(frozen=True)
class Shelf:
    """The runs of one window, newest first.

    Attributes:
        history: the user's own, or None where the browser keeps the runs.
        rows: what the browser keeps, as plain data; nothing where there is a history.
    """

    history: History | None
    rows: tuple[Any, ...] = ()

    @classmethod
    def of(cls, history: History | None, rows: Sequence[Any] | None) -> "Shelf":
        """From what the engine has and what the browser sent."""
        return cls(history, () if history else tuple((rows or ())[:KEPT]))

    def list(self, search: str = "") -> tuple[Record, ...]:
        """The runs that match, newest first; what cannot be read is left out."""
        if self.history:
            return tuple(self.history.list(search, limit=SHOWN))
        found = []
        for row in self.rows:
            with suppress(UserError):
                found.append(Record.from_json(row))
        return tuple(r for r in found if r.matches(search))

    def get(self, runs: Sequence[int]) -> tuple[Record, ...]:
        """Runs by id, in that order; those that are gone are left out."""
        if self.history is None:
            known = {r.id: r for r in self.list()}
            return tuple(known[run] for run in runs if run in known)
        found = []
        for run in runs:
            with suppress(UserError):
                found.append(self.history.get(run))
        return tuple(found)

    def add(self, recipe: Recipe, model: str, results: Sequence[MetricResult] = ()) -> "Shelf":
        """With an applied recipe, or with its numbers; a run that says all this stays as it is."""
        new = record(recipe, model, results)
        key = (new.model, new.digest, new.measured)
        damaged = None
        try:
            known = self.list() if self.history is None else self.history.list(new.digest, model)
        except Damaged as error:  # it is kept aside; this run begins a new history
            known, damaged = [], error
        old = next((r for r in known if (r.model, r.digest, r.measured) == key), None)
        if old is not None and new.metrics and _same(old, new):
            return self
        if self.history:
            self.history.add(recipe, model, results)
            if damaged is not None:
                raise damaged
            return self
        number = old.id if old else max((r.id for r in known), default=0) + 1
        place = max((r.place for r in known), default=0) + 1
        metrics = new.metrics or (old.metrics if old else ())
        new = replace(new, id=number, metrics=metrics, place=place)
        return self._with(new, *(r for r in known if r.id != number))

    def delete(self, runs: Sequence[int]) -> tuple["Shelf", tuple[Record, ...]]:
        """Without these, and what they were."""
        gone = self.get(runs)
        if self.history:
            self.history.delete([r.id for r in gone])
            return self, gone
        ids = {r.id for r in gone}
        return self._with(*(r for r in self.list() if r.id not in ids)), gone

    def restore(self, records: Sequence[Record]) -> "Shelf":
        """With deleted runs back in their places."""
        if self.history:
            self.history.restore(records)
            return self
        known = {r.id: r for r in (*records, *self.list())}
        return self._with(*sorted(known.values(), key=lambda r: (-r.place, -r.time, -r.id)))

    def _with(self, *records: Record) -> "Shelf":
        return replace(self, rows=tuple(r.to_json() for r in records[:KEPT]))


def _same(old: Record, new: Record) -> bool:
    """Whether the numbers are there already, as JSON keeps them."""
    return list(old.metrics) == list(new.metrics)
