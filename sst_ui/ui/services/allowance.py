"""How much of something each visitor took within a window of time that moves along."""

import time
from collections import deque

REMEMBERED = 1024  # visitors whose takings are known; who took nothing for longest is forgotten


class Spent(Exception):
    """More was asked for than is left.

    Attributes:
        used: what was taken already.
        minutes: until some of it comes back.
    """

    def __init__(self, used: int, minutes: int) -> None:
        super().__init__(used, minutes)
        self.used, self.minutes = used, minutes


class Allowance:
    """Counts what visitors take; not for several threads at a time."""

    def __init__(self, seconds: float) -> None:
        """What was taken comes back after `seconds`."""
        self._seconds = seconds
        self._taken: dict[str, deque[tuple[float, int]]] = {}  # visitor -> when, how much

    def take(self, name: str, amount: int, limit: int) -> None:
        """Count `amount` for a visitor who may have `limit`.

        Raises:
            Spent: that would be more; nothing is counted then.
        """
        now = time.monotonic()
        taken = self._taken.pop(name, deque())
        self._taken[name] = taken  # the last to be forgotten
        while len(self._taken) > REMEMBERED:
            del self._taken[next(iter(self._taken))]
        while taken and taken[0][0] < now - self._seconds:
            taken.popleft()
        used = sum(each for _, each in taken)
        if used + amount > limit:
            left = self._seconds - (now - taken[0][0]) if taken else self._seconds
            raise Spent(used, max(1, round(left / 60)))
        taken.append((now, amount))
