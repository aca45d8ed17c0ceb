"""Taking turns at the model: a lock that serves its waiters in the order they came.

`threading.Lock` gives no order: a thread that releases and asks again at once usually wins, and a
chat that asks for every token would starve another chat.
"""

import threading
from collections import deque


class Turns:
    """A first-come, first-served lock, used as a context manager and held for one forward pass."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        try:
            gate.acquire()  # opened by the one before us: a turn is handed over, never up for grabs
        except BaseException:  # a KeyboardInterrupt while waiting must not strand those behind us
            with self._guard:
                if gate in self._waiting:
                    self._waiting.remove(gate)
                    raise
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
