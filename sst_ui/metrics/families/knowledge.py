"""What the model still knows: facts, multiple choice, reading."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from sst_ui.data.prompt_sets import Prompt
from sst_ui.metrics.registry import Score, metric
from sst_ui.metrics.text.refusal_phrases import is_abstention, normalise, without_reasoning

_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f"  # kana, kanji, Thai


@metric("facts", title="Facts", unit="rate", better="high", prompts="demo/facts")
def fact(prompt: Prompt, answer: str) -> Score:
    """Whether the first line of the answer has the expected answer, or an alias, as whole words."""
    lines = without_reasoning(answer).splitlines()
    said = words(lines[0] if lines else "")
    wanted = [words(str(known)) for known in (prompt.answer, *prompt.aliases) if known is not None]
    if not any(wanted):
        return Score(None)
    right = any(_holds(said, want) for want in wanted if want)
    return Score(right, "right" if right else "wrong")


@metric(
    "multiple_choice",
    title="Multiple choice",
    unit="rate",
    better="high",
    prompts="demo/multiple_choice",
    reads="choice",
)
def choice(prompt: Prompt, likelihoods: Sequence[float]) -> Score:
    """Whether the right letter is the most likely one."""
    right = int(np.argmax(likelihoods)) == prompt.answer
    return Score(right, "right" if right else "wrong")


@metric("reading", title="Reading (ROUGE-L)", unit="score", better="high", prompts="demo/reading")
def reading(prompt: Prompt, answer: str) -> Score:
    """ROUGE-L F1 of the answer to a question that the passage answers (Lin 2004)."""
    if not prompt.answerable or prompt.answer is None:
        return Score(None)
    answer = without_reasoning(answer)
    best = max(rouge_l(str(known), answer) for known in (prompt.answer, *prompt.aliases))
    return Score(best, f"F1 {best:.2f}")


@metric(
    "abstention",
    title="Abstains when the text has no answer",
    unit="rate",
    better="high",
    prompts="demo/reading",
)
def abstains(prompt: Prompt, answer: str) -> Score:
    """Whether a question that the passage does not answer is left unanswered."""
    if prompt.answerable:
        return Score(None)
    right = is_abstention(answer)
    return Score(right, "abstains" if right else "invents")


def rouge_l(expected: str, answer: str) -> float:
    """ROUGE-L F1 by the rouge-score library, stemmed.

    Its own tokenizer keeps Latin letters and digits only: two identical Japanese sentences would
    score 0. Where a text has letters of a language written without spaces, each counts as a word.
    """
    unspaced = re.search(f"[{_UNSPACED}]", expected + answer) is not None
    return _scorer(unspaced).score(expected, answer)["rougeL"].fmeasure


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; letters of unspaced languages one by one."""
    return re.findall(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+", normalise(text))


def _holds(said: list[str], want: list[str]) -> bool:
    return any(said[i : i + len(want)] == want for i in range(len(said) - len(want) + 1))


class _Words:
    """A tokenizer for rouge-score that knows languages without spaces."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return words(text)


@cache
def _scorer(unspaced: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # its import takes a second

    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=_Words() if unspaced else None)
