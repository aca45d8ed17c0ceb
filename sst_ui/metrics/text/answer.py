"""An answer as metrics get it: the text, the reasoning before it, and what kind of answer it is.

It is a string, so that users' own metrics can treat it as one.
"""

from functools import cached_property

from sst_ui.metrics.text import labels
from sst_ui.metrics.text.labels import Label
from sst_ui.metrics.text.refusal_phrases import without_reasoning
from sst_ui.model.load.reasoning import split


class Answer(str):
    """The text of an answer without its reasoning.

    Attributes:
        reasoning: what stood in the `<think>` block before the answer; empty without one.
        request: what was asked, the user's words; '' where nobody said.
        label: refused, evaded, degenerate or delivered: as given (by a judge, or a person who
            corrected it), else by the rules of `labels`.
        ended: False where the length limit cut it off.
    """

    reasoning: str
    request: str
    ended: bool

    def __new__(
        cls,
        text: str,
        label: Label | None = None,
        ended: bool | None = None,
        request: str | None = None,
    ) -> "Answer":
        answer = super().__new__(cls, without_reasoning(text))
        answer.reasoning = getattr(text, "reasoning", None) or reasoning(text)
        answer.request = getattr(text, "request", "") if request is None else request
        answer.ended = getattr(text, "ended", True) if ended is None else ended
        if label is not None:
            answer.label = label
        return answer

    @cached_property
    def label(self) -> Label:
        return labels.label(self.request, str(self), self.ended)


def reasoning(text: str) -> str:
    """What was thought in `<think>` blocks, closed or not; empty without one."""
    return split(text)[0]
