"""Named rows in the order they were added: metrics, merge methods. A name is taken only once."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from sst_ui.errors import UserError, unknown


class Named(Protocol):
    """What a registry can hold."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


class Registry(Generic[Row]):
    """Rows by name; an unknown name gets a suggestion, a name that is taken is refused.

    Args:
        what: what a row is called in messages, such as `metric`.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._rows: dict[str, Row] = {}

    def add(self, row: Row) -> None:
        """Add a row under its name.

        Raises:
            UserError: another row has that name.
        """
        if row.name in self._rows:
            raise UserError(f"there is a {self._what} {row.name!r} already; choose another name.")
        self._rows[row.name] = row

    def __getitem__(self, name: str) -> Row:
        """Raises UserError, with the nearest name, for one that is unknown."""
        if name not in self._rows:
            raise unknown(self._what, name, self._rows)
        return self._rows[name]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def names(self) -> list[str]:
        """All names, in the order they were added."""
        return list(self._rows)
