"""The candidates of a search as a table: the best first, a row is a button that picks it.

What a pick is for is in `ui.events.search_choices`.
"""

from collections.abc import Mapping
from typing import Any

from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.space import used
from sst_ui.metrics.registry import find
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.state.search_results import BELL, Found
from sst_ui.ui.widgets import samples
from sst_ui.ui.widgets.definitions import definition, of_metric, titled
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.messages import say_in
from sst_ui.ui.widgets.numbers import exact, number
from sst_ui.ui.widgets.samples import Sample
from sst_ui.ui.widgets.texts import has, say

SHORT = 36  # letters of a name that says its settings


def render(language: str, found: Found, picked: str) -> str:
    """The table as HTML; empty while there is nothing in it."""
    if not found.candidates or found.aim is None:
        return ""
    names = found.aim.metrics
    heads = "".join(
        f"<th{titled(_tip(language, name))}>{safe(name_of(language, name))}</th>" for name in names
    )
    pick, rows = found.pick(picked), []
    what = definition(language, "column.settings")
    noted = any(state(language, each, found) for each in found.ranked)
    last = "<th></th>" if noted else ""
    if found.bell[0] is not None:
        words = f"{say(language, 'search.bell.row')} · {_bell(language, found)}"
        rows.append(
            _row(
                BELL, pick == BELL, "★", "", words, "<td></td>" * len(names), "" if noted else None
            )
        )  # fmt: skip
    front = {each.number for each in found.front}
    beside = {
        name: samples.usual(Sample(e.values[name].n) for e in found.ranked if name in e.values)
        for name in names
    }
    for each in found.ranked:
        best = each is found.best and found.bell[0] is None
        mark = "★" if best else "◆" if each.number in front else ""
        cells = "".join(_cell(language, each, name, beside[name]) for name in names)
        note = _note(language, each, found) if noted else None
        rows.append(
            _row(
                str(each.number), pick == str(each.number), mark, f"#{each.number}",
                settings(language, each.params), cells, note,
            )
        )  # fmt: skip
    return (
        f'<div class="methods"><table><thead><tr><th></th><th{titled(what)}>'
        f"{say(language, 'search.settings')}</th>{heads}{last}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<p class="faint">{say(language, "answers.length", tokens=found.aim.tokens)}</p></div>'
    )


def _tip(language: str, name: str) -> str:
    """A metric's title with its prompts, and what it measures."""
    return " · ".join(
        filter(None, (title(language, name, find(name).title), of_metric(language, name)))
    )


def settings(language: str, params: Mapping[str, Any]) -> str:
    """A candidate's settings in words, short."""
    words = []
    for name, value in params.items():
        if not used(name, params):
            continue
        shown = param(language, name)
        if has(f"{name}.{value}"):
            value = say(language, f"{name}.{value}")
        elif isinstance(value, bool):
            value = "✓" if value else "✗"
        words.append(f"{shown} {value:.3g}" if isinstance(value, float) else f"{shown} {value}")
    return " · ".join(words)


def named(language: str, found: Found, pick: str) -> str:
    """What a pick is called: its settings where they are few."""
    each = found.get(pick)
    if each is None:
        return _bell(language, found)
    words = settings(language, each.params)
    return words if len(words) <= SHORT else f"{found.spec.strategy} #{each.number}"


def _bell(language: str, found: Found) -> str:
    made = found.bell[0]
    if made is None:
        return ""
    weights = made.edits[-1].weights
    return settings(language, {"peak": weights.peak, "width": weights.width})


def param(language: str, name: str) -> str:
    """A setting's name."""
    key = f"search.param.{name}"
    return say(language, key) if has(key) else name.removeprefix("module_").replace("_", " ")


def state(language: str, each: Candidate, found: Found) -> str:
    """What else there is to say of a candidate: pruned, failed, a broken constraint, no effect, or
    what the metric with the target came to on the test prompts."""
    if each.state != "done":
        return say(language, "search.pruned" if each.state == "pruned" else "search.failed")
    if not each.feasible:
        return say(language, "search.infeasible")
    if found.idle(each):
        return say(language, "search.idle")
    name = found.aims.decides
    if name not in each.test:
        return ""
    return say(language, "search.tested", value=exact(each.test[name], find(name).unit))


def name_of(language: str, metric: str) -> str:
    """A metric's title without the prompts it is measured on."""
    bare = metric.partition("@")[0]
    return title(language, bare, find(bare).title)


def _row(
    pick: str, picked: bool, mark: str, name: str, words: str, cells: str, note: str | None
) -> str:
    kind = ' class="current"' if picked else ""
    last = "" if note is None else f'<td class="note">{note}</td>'
    return (
        f'<tr{kind} role="button" tabindex="0" aria-pressed="{str(picked).lower()}" '
        f'data-pick="{safe(pick)}"><th><i>{mark}</i>{safe(name)}</th>'
        f'<td title="{safe(words)}">{safe(words)}</td>{cells}{last}</tr>'
    )


def _note(language: str, each: Candidate, found: Found) -> str:
    tip = safe(say_in(language, each.note))
    return f'<span title="{tip}">{safe(state(language, each, found))}</span>'


def _cell(language: str, each: Candidate, name: str, beside: Sample | None) -> str:
    value, unit = each.values.get(name), find(name).unit
    if value is None:
        return "<td>·</td>"
    mark = samples.mark(language, Sample(value.n), beside)
    tip = safe(f"{exact(value, unit)} · n {value.n}")
    return f'<td title="{tip}">{number(value, unit)}{mark}</td>'
