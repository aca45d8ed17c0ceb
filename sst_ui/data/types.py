"""A prompt, a set of prompts, and the turns in which they reach the model.

The wording is here too: letters of a multiple-choice question, context before a reading question,
worked examples before it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from sst_ui.recipe import digest, to_dict

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Prompt:
    """One prompt and, where it applies, what a right answer is.

    Attributes:
        prompt: the instruction or question; empty only where the set holds plain `text`.
        answer: expected answer; with `choices`, the index of the right one.
        choices: options of a multiple choice question.
        context: a passage to read before the question.
        topic, subject: groups that results are broken out by.
        system: system message, if any.
        pair: name shared by prompts that belong together (a request and its wrapped form).
        text: plain text, for perplexity.
        answerable: False where the context does not hold the answer and abstaining is right.
        wrapper: name of the jailbreak a harmful request is wrapped in.
        aliases: other answers that count as right.
    """

    prompt: str
    answer: str | int | None = None
    choices: tuple[str, ...] = ()
    context: str = ""
    topic: str = ""
    subject: str = ""
    system: str = ""
    pair: str = ""
    text: str = ""
    answerable: bool = True
    wrapper: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def user(self) -> str:
        """The user turn as the model sees it."""
        if self.choices:
            options = "".join(f"\n{LETTERS[i]}. {c}" for i, c in enumerate(self.choices))
            return f"{self.prompt}{options}\nAnswer:"
        if self.context:
            return f"{self.context}\n\nQuestion: {self.prompt}"
        return self.prompt

    @property
    def key(self) -> str:
        """The text without case and spacing: prompts of the same key are the same prompt."""
        return " ".join((self.user or self.text).casefold().split())

    @property
    def assistant(self) -> str:
        """The right answer as an assistant turn: a letter where there are choices, else text."""
        if self.choices and isinstance(self.answer, int):
            return LETTERS[self.answer]
        return "" if self.answer is None else str(self.answer)

    def messages(self) -> list[dict[str, str]]:
        """The conversation to answer: the system message, if there is one, and the user turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class PromptSet:
    """A named tuple of prompts, and the worked examples that go before each of them.

    Attributes:
        digest: twelve hex digits of the content (prompts and worked examples), not of the name.
        shots: worked examples to choose from, in order; empty for zero-shot.
        shots_each: how many of them a prompt gets, at most.
    """

    name: str
    prompts: tuple[Prompt, ...]
    digest: str
    shots: tuple[Prompt, ...] = ()
    shots_each: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The conversation to answer: system message, worked examples turn by turn, user turn.

        The examples are the first ones of the prompt's own subject, or of all where its subject
        has none; never the prompt itself. With `shots` this is the few-shot, multi-turn form of
        lm-evaluation-harness (`--apply_chat_template --fewshot_as_multiturn`).
        """
        *system, user = prompt.messages()
        turns = []
        for shot in self._shots(prompt):
            turns.append({"role": "user", "content": shot.user})
            turns.append({"role": "assistant", "content": shot.assistant})
        return [*system, *turns, user]

    def _shots(self, prompt: Prompt) -> list[Prompt]:
        same = [shot for shot in self.shots if shot.subject == prompt.subject] or self.shots
        return list(islice((s for s in same if s.user != prompt.user), self.shots_each))

    def without(self, keys: Collection[str]) -> "PromptSet":
        """The set without the prompts of these keys; the same set where it has none of them."""
        kept = tuple(prompt for prompt in self.prompts if prompt.key not in keys)
        if len(kept) == len(self.prompts):
            return self
        return named(self.name, kept, self.shots, self.shots_each)

    def take(self, samples: int | None) -> "PromptSet":
        """An evenly spread subset (see `spread`); all of it for None or a larger number."""
        if samples is None or samples >= len(self.prompts):
            return self
        return self.only(spread(len(self.prompts), samples))

    def only(self, places: Sequence[int]) -> "PromptSet":
        """The prompts at these places."""
        chosen = tuple(self.prompts[i] for i in places)
        return named(self.name, chosen, self.shots, self.shots_each)


def spread(n: int, samples: int | None) -> list[int]:
    """Places of an evenly spread subset of n, the same every time; all for None or a larger number.

    One from each of `samples` stretches of equal length, at a place in it that moves on by the
    golden ratio: a fixed step would fall in step with sets that cycle through topics.
    """
    if samples is None or samples >= n:
        return list(range(n))
    return [int((i + i * 0.618034 % 1) * n / samples) for i in range(samples)]


def named(
    name: str, prompts: tuple[Prompt, ...], shots: tuple[Prompt, ...] = (), shots_each: int = 0
) -> PromptSet:
    """A prompt set with the digest of its content."""
    few = [
        to_dict(replace(shot, system="")) for shot in shots
    ]  # of a shot, only its turns are used
    content = [to_dict(prompts), few, shots_each] if shots else to_dict(prompts)
    return PromptSet(name, prompts, digest(content), shots, shots_each)
