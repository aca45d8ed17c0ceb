"""Blind mode, below the columns: which answer is better, and how often each model's was."""

from collections.abc import Sequence
from typing import get_args

from sst_ui.maths.statistics import sign_test
from sst_ui.ui.panels.chat import named
from sst_ui.ui.state.window import Choice, Conversation, Source, Vote
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.texts import say

FORGET = "forget"  # what the button that drops the votes of the pair picks
COLUMNS = ("left", "tie", "right")  # ... and those of a vote, in the order of the screen


def choice(pick: str, talk: Conversation) -> Choice | None:
    """What a button stands for at the last turn, whose answers may be swapped."""
    if pick == "tie":
        return "tie"
    if pick not in COLUMNS or not talk.turns:
        return None
    first, second, _ = get_args(Choice)
    return (first, second)[talk.turns[-1].side(COLUMNS.index(pick) // 2)]


def render(language: str, talk: Conversation) -> str:
    """The buttons where answers wait for a vote, and the count of the last turn's pair of models.

    Nothing where no vote is asked for and none was given on that pair.
    """
    last = talk.turns[-1] if talk.turns else None
    pair = last.sources if last is not None else ()
    ask = ""
    if last is not None and last.hidden and len(pair) == 2 and all(last.answers):
        words = "".join(
            f'<a role="button" tabindex="0" data-pick="{column}">'
            f"{safe(say(language, f'vote.{column}'))}</a>"
            for column in COLUMNS
        )
        ask = f'<span class="ask">{safe(say(language, "vote.which"))}</span>{words}'
    found = votes_on(talk, pair)
    if not ask and not found:
        return ""
    return f'<div class="votes" role="status">{ask}{_count(language, found) if found else ""}</div>'


def votes_on(talk: Conversation, pair: Sequence[Source]) -> list[Vote]:
    """The votes on the same two models in the same columns."""
    models = [_model(source) for source in pair]
    return [vote for vote in talk.votes if [_model(each) for each in vote.sources] == models]


def _model(source: Source) -> tuple[str, str]:
    return source.part, source.digest


def _count(language: str, votes: Sequence[Vote]) -> str:
    """How often each was better, and how likely so uneven a count is of two that are as good."""
    first, second, tie = (sum(vote.choice == each for vote in votes) for each in get_args(Choice))
    one, two = (named(language, source) for source in votes[-1].sources)
    words = say(
        language, "vote.count", one=one, first=first, two=two, second=second, ties=tie,
        p=sign_test(first, second), n=first + second,
    )  # fmt: skip
    tip = safe(say(language, "vote.test"))
    forget = (
        f'<a role="button" tabindex="0" data-pick="{FORGET}" class="forget">'
        f"{safe(say(language, 'vote.forget'))}</a>"
    )
    return f'<span class="count" title="{tip}">{safe(words)}</span>{forget}'
