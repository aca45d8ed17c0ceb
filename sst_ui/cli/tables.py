"""Tables of results in a terminal, one line per metric. Heavy imports happen inside."""

from collections.abc import Iterable, Mapping, Sequence
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


def directions(stats: Mapping[str, Sequence[float]], layers: int) -> None:
    """Print the statistics of each layer's direction."""
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", *stats, box=None)
    for layer in range(layers):
        table.add_row(str(layer), *(f"{values[layer]:.3f}" for values in stats.values()))
    Console().print(table)


def reliability(tested: Mapping[str, Any]) -> None:
    """Print which statistics do not hold up over the layers, and by which test."""
    for name, found in tested.items():
        if found.doubt == "chance":
            print(
                f"{name} is not reliable: no better than shuffled labels (p = {found.chance:.2g})."
            )
        elif found.doubt:
            print(
                f"{name} is not reliable: two halves of the prompts disagree "
                f"(agreement {found.halves:.2f} of 1). Measure with more prompts."
            )


def tradeoff(points: Iterable[Any]) -> None:
    """Print what a filter is predicted to do at several prices, by the default kernel."""
    from rich.table import Table

    table = Table("μ", "harmful removed", "harmless moved, of plain ablation's", box=None)
    for point in points:
        table.add_row(f"{point.mu:g}", f"{point.removed:.1%}", f"{point.moved:.3%}")
    show(table)


def rounds(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print what the selection prompts get after each round, and where its decision lies."""
    from rich.table import Table

    from sst_ui.metrics.text.labels import LABELS

    table = Table("directions", "decided at", "layer", "compared with", *LABELS, box=None)
    for row in rows:
        decision = row["decision"]
        where = ["–"] * 3
        if decision is not None:
            where = [f"token {decision['position']}", str(decision["layer"]), decision["contrast"]]
        shares = [f"{row['shares'][name]:.1%}" for name in LABELS]
        table.add_row(str(row["directions"]), *where, *shares)
    show(table)


def verdict(result: Any) -> str:
    """The verdict in words, with its threshold where that decides."""
    if result.change == "changed":
        return "changed" if result.verdict == "changed" else f"changed, {result.verdict}"
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
