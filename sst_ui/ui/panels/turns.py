"""How the turns of a chat are shown: every answer below where it came from, and as text.

Nothing of what a model or a visitor wrote is read as HTML.
"""

import re

from sst_ui.metrics.text.labels import Label
from sst_ui.ui.panels.answers import chip
from sst_ui.ui.panels.chat import named
from sst_ui.ui.state.window import Conversation, Source, Turn
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.texts import say

# Where Markdown would read HTML, or load an image from wherever the text says; a diagram may name
# images, too. (The end of an image's name, so that it is no link either.)
READ = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)|```(?=mermaid)")
IMAGE = re.compile(r"!\[(?:\\.|[^\[\]\\])*\](?=[(\[])")
JOINER = "\u2060"  # takes no room and is no part of a tag; assets/studio.js copies text without it


def view(
    language: str, conversation: Conversation, column: int, running: bool = False
) -> list[dict[str, str]]:
    """A column's messages for `gr.Chatbot`, every answer below where it came from.

    Args:
        running: the last turn is being answered; it shows what has come so far.
    """
    messages = []
    for turn in conversation.turns:
        messages.append({"role": "user", "content": shown(turn.message)})
        if turn.sources:
            side = turn.side(column)
            head = _nobody(language, column) if turn.hidden else _head(language, turn, side)
            if turn.unfinished and not (running and turn is conversation.turns[-1]):
                head = _stopped(language, head)
            text = f"{head}\n\n{shown(turn.answers[side].strip())}"
            messages.append({"role": "assistant", "content": text})
    return messages


def shown(text: str) -> str:
    """Markdown as it is written, in which HTML, images and diagrams stay text, in code too: else an
    answer could draw a line that says where it came from, or have the browser load an address,
    which tells whoever is there that it was read.
    """
    return READ.sub(rf"\g<0>{JOINER}", IMAGE.sub(rf"\g<0>{JOINER}", text))


def _nobody(language: str, column: int) -> str:
    """What stands above an answer that does not say yet whose it is."""
    letter = "AB"[column]
    return f'<div class="source"><b>{say(language, f"vote.answer.{letter}")}</b></div>'


def _head(language: str, turn: Turn, side: int) -> str:
    kind = turn.labels[side] if turn.labels else None
    return source_of(language, turn.sources[side], kind, turn.system)


def source_of(language: str, source: Source, kind: Label | None = None, system: str = "") -> str:
    """Who gave an answer, how, and what kind of answer it is where that is known, as the HTML above
    it; no blank line, which would end it.
    """
    name = named(language, source)
    parts = [f"<b>{_inline(name)}</b>"]
    parts += [f"<code>{_inline(source.digest)}</code>"] if source.digest else []
    if source.temperature > 0:
        words = say(language, "chat.drawn", heat=source.temperature, seed=source.seed)
        parts.append(f"<span>{_inline(words)}</span>")
    if source.left_out:
        words = say(language, "chat.left_out", count=source.left_out)
        parts.append(f"<i>{_inline(words)}</i>")
    if system:
        words = say(language, "chat.with_system")
        parts.append(f'<i title="{_inline(system)}">{_inline(words)}</i>')
    parts += [chip(language, kind)] if kind else []
    return f'<div class="source is-{source.part}">{" ".join(parts)}</div>'


def _stopped(language: str, head: str) -> str:
    """The line above an answer that did not come to its end, with a mark that says so."""
    tip, word = (safe(say(language, f"chat.stopped{part}")) for part in (".tip", ""))
    return head.removesuffix("</div>") + f' <span class="stopped" title="{tip}">{word}</span></div>'


def _inline(text: str) -> str:
    """Text that neither HTML nor Markdown nor mathematics reads anything into, on one line."""
    return safe(" ".join(text.split())).replace("$", "&#36;")
