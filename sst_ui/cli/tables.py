"""Tables of results in a terminal, one line per metric. Heavy imports happen inside."""

from collections.abc import Iterable
from typing import Any


def value(found: Any) -> str:
    """A `Value` with its interval; a dash where there is none."""
    if found is None or not found.n:
        return "–"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def metrics(results: Iterable[Any]) -> None:
    """Print metrics and what their verdicts mean.

    A row has n, the length of the answers, base, edited, their difference, and the verdict.
    """
    from rich.table import Table

    from sst_ui.metrics.results import MEANING

    table = Table("metric", "n", "tokens", "base", "edited", "difference", "verdict", box=None)
    compared = False
    for result in results:
        numbers = [value(v) for v in (result.base, result.edited, result.difference)]
        tokens = "–" if result.tokens is None else str(result.tokens)
        table.add_row(result.name, str(result.base.n), tokens, *numbers, verdict(result))
        compared = compared or result.verdict is not None
    show(table)
    if compared:
        print("; ".join(f"{word}: {meaning}" for word, meaning in MEANING.items()) + ".")


def verdict(result: Any) -> str:
    """The verdict in words, with its threshold where that decides."""
    if result.change == "changed":
        return f"changed, {result.verdict}"
    return (
        f"negligible (±{result.negligible:g})"
        if result.change == "negligible"
        else (result.change or "")
    )


def show(table: Any) -> None:
    """Print a table; a pipe is not cut to the width of a terminal that is not there."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
