"""Prompt sets: what the model is asked, read from JSON lines and checked on the way in.

Knows file formats and the wording in which a prompt reaches the model (letters of a multiple choice
question, context before a reading question). Does not know chat templates, models or metrics.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sst_ui.errors import UserError, unknown
from sst_ui.paths import PRESETS
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

    def messages(self) -> list[dict[str, str]]:
        """The conversation to answer: the system message, if there is one, and the user turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class PromptSet:
    """A named tuple of prompts; `digest` is twelve hex digits of their content, not of the name."""

    name: str
    prompts: tuple[Prompt, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, samples: int | None) -> "PromptSet":
        """An evenly spread subset, the same every time; all of it for None or a larger number.

        One prompt from each of `samples` stretches of equal length, at a place in it that moves
        on by the golden ratio: a fixed step would fall in step with sets that cycle through topics.
        """
        n = len(self.prompts)
        if samples is None or samples >= n:
            return self
        chosen = [int((i + i * 0.618034 % 1) * n / samples) for i in range(samples)]
        return _named(self.name, tuple(self.prompts[i] for i in chosen))


def names() -> list[str]:
    """Prompt sets that come with the studio, such as `demo/harmful`."""
    folder = PRESETS / "prompts"
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.jsonl"))


def load(name_or_path: str | Path, samples: int | None = None) -> PromptSet:
    """Read a prompt set.

    Args:
        name_or_path: a name from `names()`, or the path of a UTF-8 JSON lines file.
        samples: how many prompts to take, evenly spread; None for all.

    Raises:
        UserError: unknown name, file missing or not UTF-8, a line that is no prompt, an empty set.
    """
    name = str(name_or_path).strip()
    path = _locate(name)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8 text (line {line}, byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the prompt file {path}: {error.strerror}.") from error
    prompts = tuple(
        _prompt(line, f"{path.name}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    )
    if not prompts:
        raise UserError(f"the prompt set {name!r} is empty; it needs at least one prompt.")
    return _named(name, prompts).take(samples)


def _named(name: str, prompts: tuple[Prompt, ...]) -> PromptSet:
    return PromptSet(name, prompts, digest(to_dict(prompts)))


def _locate(name: str) -> Path:
    """The file behind a name: a shipped set first, then a path."""
    shipped = names()
    if name in shipped:
        return PRESETS / "prompts" / f"{name}.jsonl"
    path = Path(name).expanduser()
    if path.suffix == ".jsonl":
        if path.is_file():
            return path
        raise UserError(f"there is no prompt file {name!r}.")
    if path.is_file():
        raise UserError(
            f"cannot read prompts from {name!r}: a prompt file is JSON lines (.jsonl), one object"
            ' with a "prompt" on each line.'
        )
    raise unknown("prompt set", name, shipped)


def _prompt(line: str, where: str) -> Prompt:
    """One line of the file as a prompt."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not valid JSON: {error.msg} (column {error.colno})."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise UserError(f"{where} is not a prompt: {error}.") from error
    if not isinstance(data, Mapping):
        raise UserError(
            f'{where} is not an object: write {{"prompt": "..."}}, not {line.strip()[:40]!r}.'
        )
    values = {f.name: _field(f.name, data[f.name], where) for f in fields(Prompt) if f.name in data}
    values.setdefault("prompt", "")
    if not (values["prompt"].strip() or values.get("text", "").strip()):
        found = f"it has {', '.join(map(repr, data))}" if data else "it is empty"
        raise UserError(f'{where} lacks "prompt" (or "text", for plain text); {found}.')
    if values.get("choices"):
        values["answer"] = _index(values.get("answer"), values["choices"], where)
    elif values.get("answer") is not None:
        values["answer"] = str(values["answer"])  # "the year": 1987
    return Prompt(**values)


def _field(name: str, value: Any, where: str) -> Any:
    """Check one value; null means that the field is not there."""
    if name in ("choices", "aliases"):
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{where}: {name} must be a list of texts, not {value!r}.")
        return tuple(value)
    if name == "answer":
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise UserError(f"{where}: answer must be text or a choice's number, not {value!r}.")
        return value
    if name == "answerable":
        if not isinstance(value, bool):
            raise UserError(f"{where}: answerable must be true or false, not {value!r}.")
        return value
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} must be text, not {value!r}.")
    return value


def _index(answer: str | int | None, choices: tuple[str, ...], where: str) -> int:
    """The right choice as a number, given as number, letter or the choice's own words."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{where}: {len(choices)} choices; 2 to {len(LETTERS)} are possible.")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    elif isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS:
        answer = LETTERS.index(answer.upper())
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(
            f"{where}: answer is {answer!r}; with {len(choices)} choices it must be 0 to"
            f" {len(choices) - 1} or a letter {LETTERS[0]} to {LETTERS[len(choices) - 1]}."
        )
    return answer
