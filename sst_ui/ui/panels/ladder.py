"""The strength ladder: one message answered at several strengths, and a slider along them. The
methods of merging are shown the same way.

The slider works in the page alone: which answer is open is the visitor's business, and stays while
the answers come.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from sst_ui.metrics.text.labels import Label
from sst_ui.ui.panels.answers import chip
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.texts import empty, say, t

STRENGTHS = "-1, 0, 0.5, 1, 1.5, 2"
SCRUB = """
let at = 0;
const show = () => {
  const rungs = [...element.querySelectorAll('.rung')];
  at = Math.min(at, Math.max(rungs.length - 1, 0));
  rungs.forEach((rung, n) => {
    rung.classList.toggle('open', n === at);
    rung.setAttribute('aria-expanded', n === at);
  });
  const scrub = element.querySelector('.scrub');
  if (!scrub || !rungs.length) return;
  scrub.value = at;
  scrub.setAttribute('aria-valuetext', rungs[at].querySelector('b').textContent);
};
element.addEventListener('input', (event) => {
  if (event.target.matches('.scrub')) { at = Number(event.target.value); show(); }
});
element.addEventListener('click', (event) => {
  const rung = event.target.closest('.rung');
  if (rung) { at = [...element.querySelectorAll('.rung')].indexOf(rung); show(); }
});
element.addEventListener('keydown', (event) => {
  if (event.target.matches('.rung') && (event.key === 'Enter' || event.key === ' ')) {
    event.preventDefault();
    event.target.click();
  }
});
new MutationObserver(show).observe(element, {childList: true, subtree: true});
"""


@dataclass(frozen=True)
class AskPanel:
    """One message, and the answers that many models give to it."""

    box: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    status: gr.HTML
    rungs: gr.HTML


@dataclass(frozen=True)
class LadderPanel(AskPanel):
    """... that differ by their strength."""

    strengths: gr.Textbox


@dataclass(frozen=True)
class Rung:
    """What was answered at one strength, or under what is named; no label before it has ended."""

    strength: float
    answer: str = ""
    label: Label | None = None
    name: str = ""

    @property
    def title(self) -> str:
        """What stands beside the answer."""
        return self.name or f"{self.strength:+g}"


def create() -> LadderPanel:
    with gr.Row(elem_id="ladder-ask", elem_classes="ask-all"):
        box = _box("ladder")
        strengths = gr.Textbox(
            STRENGTHS, label=t("ladder.strengths"), show_label=False, container=False,
            max_lines=1, scale=2, min_width=130, elem_id="ladder-strengths",
        )  # fmt: skip
        buttons = _buttons("ladder")
    return LadderPanel(box, *buttons, *_answers("ladder"), strengths)


def create_asking(name: str) -> AskPanel:
    """The message, the button, and the answers below.

    Args:
        name: what the elements' ids begin with, and the texts.
    """
    with gr.Row(elem_id=f"{name}-ask", elem_classes="ask-all"):
        box = _box(name)
        buttons = _buttons(name)
    return AskPanel(box, *buttons, *_answers(name))


def _box(name: str) -> gr.Textbox:
    return gr.Textbox(
        label=t("chat.message"), placeholder=t(f"{name}.placeholder"), show_label=False,
        container=False, max_lines=3, scale=5, elem_id=f"{name}-box",
    )  # fmt: skip


def _buttons(name: str) -> tuple[gr.Button, gr.Button]:
    ask = gr.Button(
        t("ladder.ask"), variant="primary", scale=0, min_width=76, elem_id=f"{name}-send"
    )
    stop = gr.Button(
        t("chat.stop"), variant="stop", scale=0, min_width=76, elem_id=f"{name}-stop",
        visible=HIDDEN,
    )  # fmt: skip
    return ask, stop


def _answers(name: str) -> tuple[gr.HTML, gr.HTML]:
    status = gr.HTML(elem_id=f"{name}-status", elem_classes="ask-all-status")
    rungs = gr.HTML(empty(f"{name}.empty"), elem_id=name, elem_classes="rungs", js_on_load=SCRUB)
    return status, rungs


def render(language: str, rungs: Sequence[Rung], name: str = "ladder") -> str:
    """All answers, in their order, below a slider along them."""
    rows = "".join(
        f'<div class="rung" role="button" tabindex="0"><b>{safe(rung.title)}</b>'
        f"{chip(language, rung.label) if rung.label else '<span></span>'}"
        f"<p>{safe(rung.answer.strip()) or '…'}</p></div>"
        for rung in rungs
    )
    told = safe(say(language, f"{name}.scrub"))
    scrub = f'<input class="scrub" type="range" min="0" max="{len(rungs) - 1}" aria-label="{told}">'
    return f"{scrub if len(rungs) > 1 else ''}{rows}"


def flips(language: str, rungs: Sequence[Rung]) -> str:
    """Between which strengths refusing begins or ends; empty before all labels are known."""
    if not rungs or any(rung.label is None for rung in rungs):
        return ""
    refused = [rung.label == "refused" for rung in rungs]
    places = [
        f"{one.strength:g} – {two.strength:g}"
        for one, two, left, right in zip(rungs, rungs[1:], refused, refused[1:], strict=False)
        if left != right
    ]
    if places:
        return say(language, "ladder.flips", places=", ".join(places))
    return say(language, "ladder.all" if refused[0] else "ladder.none")
