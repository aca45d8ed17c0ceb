"""The command `history`: list, show, compare and delete remembered runs.

Heavy imports happen inside.
"""

import argparse
import sys
from typing import Any

from sst_ui.cli import streams, tables
from sst_ui.cli.option_types import whole
from sst_ui.errors import UserError


def options(parser: argparse.ArgumentParser) -> None:
    """What can be done with the history; without a word it is listed."""
    what = parser.add_subparsers(dest="what", metavar="list|show|compare|delete")
    known = what.add_parser("list", help="runs, newest first")
    known.add_argument(
        "--search", default="", metavar="WORDS", help="to find in name, recipe, metrics"
    )
    known.add_argument("--model", help="only runs on this model")
    known.add_argument("--limit", type=whole(1), default=20)
    one = what.add_parser("show", help="one run: its numbers and its recipe")
    one.add_argument("run", metavar="RUN", help="number, or the start of the hash")
    one.add_argument("--recipe", action="store_true", help="only the recipe, as YAML")
    several = what.add_parser("compare", help="numbers side by side, and how the recipes differ")
    several.add_argument("runs", nargs="+", metavar="RUN")
    gone = what.add_parser("delete", help="delete runs")
    gone.add_argument("runs", nargs="+", metavar="RUN")
    gone.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    for command in (known, one, several, gone):
        command.add_argument("--json", action="store_true")
    parser.set_defaults(search="", model=None, limit=20)
    parser.add_argument("--json", action="store_true")


def run(given: argparse.Namespace) -> None:
    """Do what was asked."""
    from sst_ui.jobs.history.store import History

    history = History()
    {"show": _show, "compare": _compare, "delete": _delete}.get(given.what, _list)(history, given)


def remember(recipe: Any, results: Any) -> None:
    """Add a run to the history; where that fails, a warning on stderr and no more."""
    from sst_ui.jobs.history.store import remember as keep

    if problem := keep(recipe, recipe.model.id, results):
        print(f"warning: {problem}", file=sys.stderr)


def _list(history: Any, given: argparse.Namespace) -> None:
    records = history.list(given.search, given.model, given.limit)
    if given.json:
        _print([_plain(r) for r in records])
        return
    if not records:
        print("no runs" + (" match." if given.search or given.model else " yet."))
        return
    from rich.table import Table

    from sst_ui.metrics.registry import SUMMARY

    table = Table("run", "when", "recipe", "hash", "model", *SUMMARY, box=None)
    for r in records:
        numbers = [_number(r.metric(name)) for name in SUMMARY]
        table.add_row(str(r.id), r.when, r.title, r.digest, r.model, *numbers)
    tables.show(table)


def _show(history: Any, given: argparse.Namespace) -> None:
    record = history.get(given.run)
    if given.recipe:  # to be read by a program again: nothing in it may become a question mark
        print(record.text if streams.shows(record.text) else _ascii(record.text), end="")
    elif given.json:
        _print(_plain(record))
    else:
        print(f"run {record.id}: {record.title}, recipe {record.digest}, on {record.model}, "
              f"{record.when}")  # fmt: skip
        if record.metrics:
            tables.metrics(record.results())
        print(record.text, end="")


def _compare(history: Any, given: argparse.Namespace) -> None:
    found = history.compare(given.runs)
    if given.json:
        _print(found.to_json())
        return
    from rich.table import Table

    heads = [f"{r.id}: {r.title}" for r in found.records]
    table = Table("metric", "base", *heads, box=None)
    for metric, rows in found.metrics:
        name = f"{metric['name']}{_lengths(rows)}"
        table.add_row(name, _number(metric, "base"), *map(_number, rows))
    for name, values in (("hash", [r.digest for r in found.records]), *found.differences):
        table.add_row(name, "", *(value or "–" for value in values))
    tables.show(table)


def _delete(history: Any, given: argparse.Namespace) -> None:
    records = [history.get(run) for run in given.runs]
    if not given.yes:
        if not sys.stdin.isatty():
            raise UserError("delete asks for confirmation, and stdin is not a terminal; add --yes.")
        names = ", ".join(f"{r.id} ({r.title})" for r in records)
        if input(f"delete {names}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing deleted.")
            return
    gone = history.delete([r.id for r in records])
    if given.json:
        _print([_plain(r) for r in gone])
    else:
        print(f"deleted {', '.join(str(r.id) for r in gone)}.")


def _ascii(text: str) -> str:
    """The same YAML with escapes in place of signs beyond ASCII."""
    import yaml

    return yaml.safe_dump(yaml.safe_load(text), sort_keys=False)


def _number(row: Any, side: str = "edited") -> str:
    found = row and (row[side] or row["base"])
    return "–" if not found or found["value"] is None else f"{found['value']:.3f}"


def _lengths(rows: Any) -> str:
    """How long the answers were that a metric was read off, where a run has it and says so."""
    found = sorted({row["tokens"] for row in rows if row and row.get("tokens")})
    return f" ({' / '.join(map(str, found))} tokens)" if found else ""


def _plain(record: Any) -> dict[str, Any]:
    return record.to_json() | {"when": record.when}


def _print(value: Any) -> None:
    print(streams.to_json(value))
