"""Tables of results as they look in a terminal, one line a metric.

Knows results and rich. Does not know commands. Heavy imports happen inside.
"""

from collections.abc import Iterable
from typing import Any


def value(found: Any) -> str:
    """A `Value` with its interval; a dash where there is none."""
    if found is None or not found.n:
        return "–"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def metrics(results: Iterable[Any]) -> None:
    """Print metrics: n, base, edited, verdict."""
    from rich.table import Table

    table = Table("metric", "n", "base", "edited", "verdict", box=None)
    for result in results:
        pair = [value(v) for v in (result.base, result.edited)]
        table.add_row(result.name, str(result.base.n), *pair, result.verdict or "")
    show(table)


def show(table: Any) -> None:
    """Print a table; a pipe is not cut to the width of a terminal that is not there."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
