"""A small thread-safe LRU cache for values that are costly to compute."""

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

Value = TypeVar("Value")
_all: "WeakSet[Memory[Any]]" = WeakSet()


class Memory(Generic[Value]):
    """The `size` values that were used last. It can be pickled, and survives a fork."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        _all.add(self)

    def __getstate__(self) -> tuple[int, "OrderedDict[Hashable, Value]"]:
        with self._lock:
            return self._size, self._values.copy()

    def __setstate__(self, state: tuple[int, "OrderedDict[Hashable, Value]"]) -> None:
        self.__init__(state[0])  # type: ignore[misc]  # as if made anew
        self._values = state[1]

    def get(self, key: Hashable) -> Value | None:
        """The value, or None; it counts as used now."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value; the one that was not used for longest makes room."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def items(self) -> list[tuple[Hashable, Value]]:
        """All names and values, the one used last at the end; none counts as used now."""
        with self._lock:
            return list(self._values.items())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()

    def _unlock(self) -> None:
        self._lock = threading.Lock()


def _forked() -> None:
    """Open what another thread of the parent held when it forked: that thread is not here."""
    for memory in _all:
        memory._unlock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
