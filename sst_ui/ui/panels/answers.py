"""From a metric down to its prompts: both answers, what they were taken for, and the topics.

A label that was read from an answer is a menu: what is chosen there reaches Python as `event.item`,
`event.side` and `event.label`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

from sst_ui.metrics import corrections
from sst_ui.metrics.results import Item, MetricResult
from sst_ui.ui.panels.metrics import MARKS, corrected, meaning, title, told, verdict
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets.html import CLICKS, safe
from sst_ui.ui.widgets.inputs import Dropdown, Radio
from sst_ui.ui.widgets.messages import note_in
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.numbers import interval, number, scale, track
from sst_ui.ui.widgets.texts import empty, has, say, t

ANY = "any"
AS_DETECTED = "detected"
SHOWN = 250  # prompts at once; a browser gets slow with many more
MANY = 8  # different labels that are still a filter

FIXES = (
    CLICKS
    + """
element.addEventListener('change', (event) => {
  const menu = event.target.closest('select[data-item]');
  if (!menu) return;
  const {item, side} = menu.dataset;
  trigger('select', {item: Number(item), side: side, label: menu.value});
});
"""
)


@dataclass(frozen=True)
class AnswersPanel:
    only: gr.Radio
    label: gr.Dropdown
    search: gr.Textbox
    table: gr.HTML


def create() -> AnswersPanel:
    with gr.Row(elem_id="answers-tools"):
        only = Radio(
            [(t("answers.all"), "all"), (t("answers.changed"), "changed")],
            value="all",
            label=t("answers.all"),
            show_label=False,
            container=False,
            elem_id="answers-filter",
            min_width=120,
        )
        label = Dropdown(
            [(t("answers.any"), ANY)],
            value=ANY,
            label=t("answers.label"),
            show_label=False,
            container=False,
            elem_id="answers-label",
            min_width=110,
        )
        search = gr.Textbox(
            "",
            label=t("answers.search"),
            placeholder=t("answers.search"),
            show_label=False,
            container=False,
            max_lines=1,
            elem_id="answers-search",
            min_width=140,
        )
    table = gr.HTML(
        empty("answers.none"),
        elem_id="answers",
        js_on_load=FIXES,
    )
    return AnswersPanel(only, label, search, table)


def labels(language: str, result: MetricResult | None) -> list[tuple[str, str]]:
    """Choices of the label filter: any, and those that this metric's answers have."""
    found = {name for item in result.items for name in _labels(item)} if result else set()
    named = sorted(found) if len(found) <= MANY else []
    return [(say(language, "answers.any"), ANY), *((word(language, n), n) for n in named)]


def word(language: str, label: str) -> str:
    """A label in the visitor's language; a metric's own words where they are known."""
    key = f"label.{label}"
    return say(language, key) if has(key) else note_in(language, label)


def means(language: str, label: str) -> str:
    """What a label says of an answer; empty for a metric's own words."""
    return say(language, f"label.{label}.means") if has(f"label.{label}.means") else ""


def chip(language: str, label: str, text: str = "") -> str:
    """A label as HTML, in words; `text` in place of its name."""
    tip = safe(means(language, label))
    shown = safe(text or word(language, label))
    return f'<span class="label l-{safe(label)}" title="{tip}">{shown}</span>'


def passing(board: Board, result: MetricResult) -> list[tuple[int, Item]]:
    """The prompts that pass the filter, each with its place among all of them."""
    wanted = (board.search or "").casefold().strip()
    return [
        (place, item)
        for place, item in enumerate(result.items)
        if (board.only != "changed" or changed(item))
        and (board.label in (ANY, "") or board.label in _labels(item))
        and (not wanted or wanted in _text(item))
    ]


def changed(item: Item) -> bool:
    """Whether the edit changed what the answer is or what it scored."""
    return item.base_label != item.edited_label or item.base_score != item.edited_score


def render(board: Board) -> str:
    """The opened metric: its numbers, topics, and prompts with both answers."""
    lang, result = board.language, board.find(board.opened)
    if result is None:
        return f'<p class="empty">{say(lang, "answers.none")}</p>'
    found = passing(board, result)
    kind = verdict(result)
    now = board.variants.now
    whose = f"{safe(shown_name(lang, now.name))} <code>{now.recipe.digest()}</code>" if now else ""
    head = (
        f'<div class="answers-head"><b>{safe(title(lang, result.name, result.title))}</b>'
        f'<span class="whose">{whose}</span>'
        f'<span class="v-{kind}" title="{safe(meaning(lang, kind))}">{MARKS[kind]} '
        f"{say(lang, f'verdict.{kind}')}</span>"
        f"<span>{told(lang, result)}</span>"
        f"<span>{say(lang, 'answers.count', shown=len(found), total=len(result.items))}</span>"
        f"{corrected(lang, board.counts.get(result.name, 0))}</div>"
    )
    if result.note:
        head += f'<p class="empty">{safe(note_in(lang, result.note))}</p>'
    return head + _topics(board, result) + _table(board, result, found)


def _table(board: Board, result: MetricResult, found: list[tuple[int, Item]]) -> str:
    lang = board.language
    if not found:
        return f'<p class="empty">{say(lang, "answers.empty")}</p>' if result.items else ""
    fixable = corrections.reads_labels(result)
    body = "".join(
        f"<tr><td>{safe(item.prompt)}{_below(lang, item)}</td>"
        f"<td>{_label(board, place, item, 'base', fixable)}{safe(item.base)}</td>"
        f"<td>{_label(board, place, item, 'edited', fixable)}{safe(item.edited or '')}</td></tr>"
        for place, item in found[:SHOWN]
    )
    columns = "".join(
        f'<th class="{kind}">{say(lang, key)}</th>'
        for key, kind in (
            ("answers.prompt", ""),
            ("chat.base", "is-base"),
            ("answers.edited", "is-edited"),
        )
    )
    more = ""
    if len(found) > SHOWN:
        more = f'<p class="empty">{say(lang, "answers.more", shown=SHOWN)}</p>'
    return (
        f'<div class="answers"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _topics(board: Board, result: MetricResult) -> str:
    """Every topic with bars and intervals; a topic is a button that searches for it."""
    groups = result.topics()
    if len(groups) < 2:
        return ""
    end = scale(result.unit, [v for pair in groups.values() for v in pair])
    rows = "".join(
        f'<div class="topic" role="button" tabindex="0" data-pick="{safe(topic)}">'
        f"<span>{safe(topic or '–')}</span><div>{track(base, end, 'is-base')}"
        f"{track(edited, end, 'is-edited')}</div><s>{number(base, result.unit)}</s>"
        f"<b>{number(edited, result.unit)}</b>"
        f"<small>{interval(edited or base, result.unit)}</small><small>n {base.n}</small></div>"
        for topic, (base, edited) in groups.items()
    )
    return (
        f'<details class="topics" open><summary>{say(board.language, "answers.topics")}</summary>'
        f"<div>{rows}</div></details>"
    )


def _label(board: Board, place: int, item: Item, side: str, fixable: bool) -> str:
    label, score = getattr(item, f"{side}_label"), getattr(item, f"{side}_score")
    answer = getattr(item, side)
    if not fixable or answer is None:
        text = word(board.language, label) or ("" if score is None else f"{score:.3g}")
        return chip(board.language, label, text) if text else ""
    lang = board.language
    fixed = corrections.key(item.prompt, answer) in board.labels
    names: Mapping[str, str] = {name: word(lang, name) for name in corrections.LABELS}
    if fixed:
        names = {**names, AS_DETECTED: say(lang, "answers.detected")}
    options = "".join(
        f'<option value="{name}"{" selected" if name == label else ""}>'
        f"{'✎ ' if fixed and name == label else ''}{safe(text)}</option>"
        for name, text in names.items()
    )
    return (
        f'<select class="label l-{safe(label)}{" fixed" if fixed else ""}" data-item="{place}" '
        f'data-side="{side}" title="{say(lang, "answers.fix", means=means(lang, label))}" '
        f'aria-label="{say(lang, "answers.label")}">{options}</select>'
    )


def _labels(item: Item) -> set[str]:
    return {item.base_label, item.edited_label} - {""}


def _text(item: Item) -> str:
    parts = (item.prompt, item.topic, item.expected, item.base, item.edited or "")
    return "\n".join(parts).casefold()


def _below(language: str, item: Item) -> str:
    expected = say(language, "answers.expected", text=item.expected) if item.expected else ""
    return "".join(f"<small>{safe(text)}</small>" for text in (item.topic, expected) if text)
