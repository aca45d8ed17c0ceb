"""A conversation token by token: where each layer stands on the refusal direction, what the logit
lens says there, and how far the edited model is from the base."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.jobs.chat import said
from sst_ui.jobs.directions.residual_cache import check_fits
from sst_ui.maths.directions import Directions
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.lens import lens, most, streams
from sst_ui.model.inference.residuals import instruction_end
from sst_ui.model.load.chat_template import Message
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

SHOWN = 256  # tokens at most, from the end: a screen has no use for more
TOP = 5
# What a token is to the position at which a direction is measured: one of the two positions; of
# the answer; of the template, between the two; or of a message or the template in front of that.
PLACES = ("template", "instruction", "answer", "between", "inside")


@dataclass(frozen=True)
class Reading:
    """A conversation as the model reads it.

    Attributes:
        ids: its tokens, the answer included, without what ends the answer.
        prompt: how many of them are the prompt's; its last one decides the answer's first.
        instruction: place of the last token of the user's last message; None where the template or
            the tokenizer do not let it be found.
    """

    ids: tuple[int, ...]
    prompt: int
    instruction: int | None

    def place(self, token: int) -> str:
        """Which of `PLACES` a token is, by its place in the conversation."""
        if token >= self.prompt:
            return "answer"
        if token == self.prompt - 1:
            return "template"
        if self.instruction is None or token < self.instruction:
            return "inside"
        return "instruction" if token == self.instruction else "between"


@dataclass(frozen=True, eq=False)
class TokenView:
    """Numbers of base (first) and edited (second) at the last tokens of a conversation.

    Attributes:
        reading: the conversation.
        first: place of the first token that is shown.
        tokens: [N] the shown tokens as text.
        along: [2, L, N] float32, projection of the residual on each layer's unit direction.
        place: [2, L, N] float32, the same with 0 at the mean of the harmless prompts the direction
            was measured on, and 1 at that of the harmful ones.
        top: [2, L, N, k] int64, most likely next tokens by the logit lens; None until it is done.
        shares: [2, L, N, k] float32, their probabilities.
        kl: [L, N] float32, KL(base ‖ edited) of the lens in nats; the last layer's is the models'.
        words: text of every token in `top`.
    """

    reading: Reading
    first: int
    tokens: tuple[str, ...]
    along: np.ndarray
    place: np.ndarray
    top: np.ndarray | None = None
    shares: np.ndarray | None = None
    kl: np.ndarray | None = None
    words: Mapping[int, str] | None = None


def read(host: Host, messages: Sequence[Message]) -> Reading:
    """A conversation through the chat template.

    Args:
        messages: they end with the user's message, or with what was answered to it. What was
            thought in earlier answers is left out, as in a chat.

    Raises:
        UserError: it is empty, or leaves no room in the context.
    """
    answer = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    asked = [said(message) for message in (messages[:-1] if answer else messages)]
    prompt = host.encode(asked)
    ids = prompt
    if answer:
        own = answer.removeprefix(host.template.opened)
        written = host.template.answer_tokens(asked, own)
        ids = [*prompt, *(written[:-1] if written[-1:] and written[-1] in host.stop else written)]
    try:
        end = instruction_end(host, asked)
    except UserError:
        end = None
    return Reading(tuple(ids[: host.context]), len(prompt), end)


def token_view(
    host: Host, messages: Sequence[Message], directions: Directions, edited: Row
) -> Generator[Progress | TokenView, None, TokenView]:
    """Look at a conversation under no edit and under the edits of a row.

    One forward pass for both; then the logit lens, some tokens at a time, with other sessions'
    steps between. A long conversation is read whole, and its last tokens are shown.

    Yields:
        The view without its lens, as soon as it is there; then Progress of the stage `lens`.

    Raises:
        UserError: directions of another model, or a conversation that is too long.
    """
    check_fits(host, directions, "the directions")
    reading, rows = read(host, messages), ((), edited)
    shown = min(len(reading.ids), SHOWN, most(host, len(rows)))
    found = streams(host, reading.ids, reading.prompt, rows, shown)  # [L, 2, N, d]
    along, place = _projected(found, directions)
    first = len(reading.ids) - shown
    texts = tuple(host.template.piece(token) for token in reading.ids[first:])
    view = TokenView(reading, first, texts, along, place)
    yield view
    seen = yield from lens(host, found, rows, TOP)
    words = {int(token): host.template.piece(int(token)) for token in seen.tokens.unique()}
    return replace(
        view, top=seen.tokens.numpy(), shares=seen.shares.numpy(), kl=seen.kl.numpy(), words=words
    )


def _projected(found: Tensor, directions: Directions) -> tuple[np.ndarray, np.ndarray]:
    """[2, L, N] projections of [L, 2, N, d] residuals, and where they lie between the means."""
    main = directions.vectors[:, 0].double()  # [L, d]
    along = [layer.cpu().double() @ r for layer, r in zip(found, main, strict=True)]
    whole = np.stack([each.numpy() for each in along], 1)  # [2, L, N]
    neutral = directions.neutral[:, 0].double().numpy()[:, None]
    distance = directions.norms.double().clamp(min=1e-12).numpy()[:, None]
    place = (whole - neutral) / distance
    return whole.astype(np.float32), place.astype(np.float32)
