"""An answer as metrics get it: the text, the reasoning before it, and what kind of answer it is.

It is a string, so that users' own metrics can treat it as one.
"""

from functools import cached_property

from sst_ui.metrics.text import refusal_phrases
from sst_ui.metrics.text.refusal_phrases import Label
from sst_ui.model.load.reasoning import split


class Answer(str):
    """The text of an answer without its reasoning.

    Attributes:
        reasoning: what stood in the `<think>` block before the answer; empty without one.
        label: refused, complied, empty or looping: as given (by a judge, or a person who corrected
            it), else by the phrase lists.
        ended: False where the length limit cut it off.
    """

    reasoning: str
    ended: bool

    def __new__(cls, text: str, label: Label | None = None, ended: bool | None = None) -> "Answer":
        answer = super().__new__(cls, refusal_phrases.without_reasoning(text))
        answer.reasoning = getattr(text, "reasoning", None) or reasoning(text)
        answer.ended = getattr(text, "ended", True) if ended is None else ended
        if label is not None:
            answer.label = label
        return answer

    @cached_property
    def label(self) -> Label:
        return refusal_phrases.label(str(self))


def reasoning(text: str) -> str:
    """What was thought in `<think>` blocks, closed or not; empty without one."""
    return split(text)[0]
