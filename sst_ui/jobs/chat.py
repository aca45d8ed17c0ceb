"""Side-by-side chat: several edits answer at once, each with a conversation of its own."""

import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from sst_ui.errors import UserError
from sst_ui.model.inference.batch import Row, out_of_memory, too_little_memory
from sst_ui.model.inference.generate import written
from sst_ui.model.inference.running_batch import together
from sst_ui.model.load.chat_template import Message
from sst_ui.model.load.reasoning import split
from sst_ui.model.runtime.host import Host
from sst_ui.recipe import SEEDS

PER_SECOND = 25  # texts a second that a screen can take


@dataclass(frozen=True)
class Fitted:
    """A conversation that fits: its tokens, and how many of its oldest turns were left out.

    A turn is a message of the user's with what was answered to it.
    """

    ids: list[int]
    dropped: int


def new_seed() -> int:
    """A random seed for a new answer; the same seed gives the same answer again."""
    return secrets.randbelow(SEEDS + 1)


def fit(host: Host, messages: Sequence[Message], max_new_tokens: int) -> Fitted:
    """Leave out the oldest turns until the conversation and its answer fit the context.

    System messages and the last message always stay. The answer's share is `max_new_tokens`, at
    most half of the context. What was thought in earlier answers is not read again.

    Raises:
        UserError: the last message alone is too long, or there is none to answer.
    """
    if not messages or messages[-1]["role"] != "user":
        raise UserError("there is no message to answer; the conversation must end with the user's.")
    room = host.context - min(max_new_tokens, host.context // 2)
    system = [message for message in messages if message["role"] == "system"]
    turns = [said(message) for message in messages if message["role"] != "system"]
    dropped = 0
    while True:
        ids = host.template.encode([*system, *turns])
        if len(ids) <= room:
            return Fitted(ids, dropped)
        # a conversation starts with the user: a question goes together with its answers
        following = [i for i, turn in enumerate(turns) if i > 0 and turn["role"] == "user"]
        if not following:
            raise UserError(
                f"the message has {len(ids)} tokens; {host.name} reads {host.context} and "
                f"{host.context - room} of them are reserved for the answer. Shorten it."
            )
        dropped += 1
        turns = turns[following[0] :]


def said(message: Message) -> Message:
    """An earlier answer without its reasoning: chat templates expect it so, and some refuse it."""
    if message["role"] != "assistant":
        return message
    return {**message, "content": split(message["content"])[1]}


def chat(
    host: Host,
    rows: Sequence[Row],
    histories: Sequence[Sequence[Message]],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
    notify: Callable[[list[int]], None] | None = None,
) -> Generator[list[str], None, list[str]]:
    """Answer every conversation under its own edits, in one batch with all other chats.

    Args:
        rows: the edits of each column; an empty tuple is the base model.
        histories: each column's messages, the user's last.
        notify: is told, before the first token, how many of the oldest turns had to be left out
            of each conversation, if any had.

    Yields:
        The text of every column so far, up to 25 times a second. Close the generator to stop.

    Raises:
        UserError: a message is too long for the context.
    """
    fitted = [fit(host, history, max_new_tokens) for history in histories]
    dropped = [one.dropped for one in fitted]
    if notify and any(dropped):
        notify(dropped)
    texts = [""] * len(histories)
    told = 0.0
    ids = [one.ids for one in fitted]
    columns = together(host, ids, rows, max_new_tokens, temperature, seed, top_p)
    try:
        with closing(columns):
            for texts in written(host, columns, len(ids)):
                if (now := time.monotonic()) - told >= 1 / PER_SECOND:
                    told = now
                    yield texts
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise too_little_memory(max(len(one.ids) for one in fitted)) from error
    yield texts
    return texts
