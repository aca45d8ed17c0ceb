"""Separates a model's reasoning from its answer, by the marks in presets/reasoning.yaml."""

import re
from dataclasses import dataclass
from functools import cache

import yaml

from sst_ui.paths import PRESETS

Pair = tuple[str, str]
PART = 5  # characters that are enough to take the beginning of an answer for that of a mark
# gpt-oss (the harmony format): a channel's name, perhaps with more behind it, then the message
_MESSAGE = re.compile(r"<\|channel\|>(\w+)[^<]*<\|message\|>(.*?)(?=<\||\Z)", re.DOTALL)
_OPEN_MESSAGE = re.compile(r"<\|channel\|>\w+[^<]*<\|message\|>[^<]*\Z")


@dataclass(frozen=True)
class Marks:
    """What stands around reasoning and answers: pairs of what opens and what closes.

    Attributes:
        tags: around a block of reasoning, wherever it stands.
        phrases: the same, but only at the beginning of a text.
        wrappers: around the answer.
        channel: the tokens of the harmony format, which names the channel of each message.
    """

    tags: tuple[Pair, ...]
    phrases: tuple[Pair, ...]
    wrappers: tuple[Pair, ...]
    channel: tuple[str, ...]


@cache
def marks() -> Marks:
    """The marks in presets/reasoning.yaml."""
    data = yaml.safe_load((PRESETS / "reasoning.yaml").read_text(encoding="utf-8"))
    pairs = {name: tuple(map(tuple, data[name])) for name in ("tags", "phrases", "wrappers")}
    return Marks(**pairs, channel=tuple(data["channel"]))


def split(text: str) -> tuple[str, str]:
    """Reasoning and answer, both stripped.

    Every closed block is reasoning, wherever it stands. So is what stands before a closing tag
    that nothing opened (the prompt did), and all of a text that begins with a block which never
    closes: its answer is empty.

    Returns:
        (reasoning, answer); the reasoning of several blocks is joined by empty lines.
    """
    thoughts, answer, _ = _parts(text)
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts))), answer.strip()


def shown(text: str) -> str:
    """The same text with its reasoning in one `<think>` block, whatever the model's own marks are.

    For an answer that is still being written: a block that is still open stays open, and the first
    part of a mark (longer than a few characters) is not shown yet.
    """
    begun = text.strip()
    if len(begun) >= PART and any(opening.startswith(begun) for opening, _ in marks().tags):
        return ""
    thoughts, answer, closed = _parts(text)
    thought = "\n\n".join(filter(None, (piece.strip() for piece in thoughts)))
    if not thought and closed:
        return answer
    return f"<think>\n{thought}" + (f"\n</think>\n\n{answer.lstrip()}" if closed else "")


def opened(prompt: str) -> str:
    """The block of reasoning that a prompt opens and leaves to the model to close; else empty.

    Args:
        prompt: the end of a formatted prompt, from behind the user's message on.
    """
    for opening, closing in marks().tags:
        _, found, inside = prompt.rpartition(opening)
        if found and closing not in inside:
            return found + inside
    message = _OPEN_MESSAGE.search(prompt)
    return message[0] if message else ""


def closing(prompt: str) -> str:
    """What closes the block that a prompt ends with; empty where it does not end with one."""
    end = prompt.rstrip()
    return next((close for opening, close in marks().tags if end.endswith(opening)), "")


def _parts(text: str) -> tuple[list[str], str, bool]:
    """Pieces of reasoning, the answer, and whether the last block is closed."""
    thoughts: list[str] = []
    known, marked, closed = marks(), False, True
    if known.channel[1] in text:
        marked = True
        messages = list(_MESSAGE.finditer(text))
        thoughts = [found[2] for found in messages if found[1] == "analysis"]
        if thoughts and messages[-1][1] == "analysis":
            closed = messages[-1].end() < len(text)  # once anything stands behind it
        text = "\n\n".join(found[2].strip() for found in messages if found[1] != "analysis")
    pairs = [pair for pair in known.tags if pair[0] in text or pair[1] in text]
    pairs += [pair for pair in known.phrases if text.lstrip().startswith(pair[0])]
    for opening, ending in pairs:
        if ending in text:
            marked = True
            *blocks, text = text.split(ending)
            rest = ""
            for piece in blocks:
                outside, found, inside = piece.partition(opening)
                # without an opening tag, what was taken for an answer so far was thought too
                thoughts.append(inside if found else rest + outside)
                rest = rest + outside if found else ""
            text = rest + text
        if text.lstrip().startswith(opening):
            thoughts.append(text.replace(opening, "", 1))
            text, closed = "", False
    for opening, ending in known.wrappers:
        begun = text.lstrip()
        if begun.startswith(opening) and (marked or opening.startswith("<|")):
            text = begun.removeprefix(opening).rstrip().removesuffix(ending)
    return thoughts, text, closed
