"""From messages to tokens: the model's own chat template, and the traps around it.

Knows tokenizers and Jinja templates. Does not know models or edits. The traps:

* a template that writes BOS and a tokenizer that adds it too (every prompt would start twice);
* a template that refuses the system role, or drops it without a word;
* thinking models: one setting for measuring, chat and metrics, also where the template ignores it;
* no template at all, no pad token, an end-of-turn token that the configuration does not list.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError

from sst_ui.errors import UserError, unknown
from sst_ui.paths import PRESETS

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

TEMPLATES = PRESETS / "templates"
REFUSAL = (TemplateError, TypeError, ValueError)  # what a template may raise on a conversation
_PROBE = "9d2fqz"  # a word that no template contains by itself


class ChatTemplate:
    """How one tokenizer writes a conversation. Thread-safe, immutable once built.

    Attributes:
        text: the Jinja source.
        accepts_system: whether a system message reaches the prompt as a message of its own.
        adds_bos: whether the tokenizer, left alone, starts every text with BOS.
        stop: ids after which the assistant's turn is over, from tokenizer and template.
        pad: id to fill short rows with; always masked, so any id will do.
    """

    def __init__(self, tokenizer, source: str | None = None, enable_thinking: bool = False) -> None:
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self._lock = (
            threading.Lock()
        )  # a fast tokenizer refuses two callers at once while it is changed
        if source is not None:
            tokenizer.chat_template = read_template(source)
        if not tokenizer.chat_template:
            names = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
            raise UserError(
                "this model has no chat template; give one with model.chat_template: "
                f"the path of a Jinja file, or one of {names}."
            )
        self.text = str(tokenizer.chat_template)
        ids = tokenizer(_PROBE)["input_ids"]
        bos = tokenizer.bos_token_id
        self.adds_bos = bos is not None and bool(ids) and ids[0] == bos
        self.accepts_system = self._accepts_system()
        self.stop = self._stop()
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
        self.pad = next(token for token in candidates if token is not None)

    def format(self, messages: Sequence[Message]) -> str:
        """The prompt as text, generation prompt included.

        Args:
            messages: a conversation that ends with the user's message.

        Raises:
            UserError: the template refuses the conversation.
        """
        messages = [dict(message) for message in messages]
        if not messages:
            raise UserError("the conversation is empty; it needs at least one message.")
        if not self.accepts_system:
            messages = _fold_system(messages)
        try:
            text = self._render(messages, add_generation_prompt=True)
        except REFUSAL as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise UserError(
                f"the chat template refuses a conversation of {roles}: {error}"
            ) from error
        if not self.enable_thinking and text.rstrip().endswith("<think>"):
            text = (
                text.rstrip() + "\n\n</think>\n\n"
            )  # the template opens it whatever the setting says
        return text

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt as tokens, with exactly one BOS if template or tokenizer want one."""
        ids = self.tokens(self.format(messages))
        bos = self.tokenizer.bos_token_id
        if self.adds_bos and (not ids or ids[0] != bos):
            ids.insert(0, bos)
        return ids

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text as it stands: nothing added in front or behind."""
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones; half characters show as U+FFFD."""
        with self._lock:
            return self.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=self.enable_thinking,
        )

    def _accepts_system(self) -> bool:
        conversation = [
            {"role": "system", "content": _PROBE},
            {"role": "user", "content": "x"},
        ]
        try:
            return _PROBE in self._render(conversation, add_generation_prompt=True)
        except REFUSAL:
            return False

    def _stop(self) -> frozenset[int]:
        """EOS, and the special token with which the template closes an assistant's turn."""
        stop = {self.tokenizer.eos_token_id} - {None}
        conversation = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._render(conversation, add_generation_prompt=False)
        except REFUSAL as error:
            raise UserError(
                f"the chat template cannot write a plain conversation: {error}"
            ) from error
        after = self.tokens(text.rpartition(_PROBE)[2].lstrip())
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        if after and after[0] in special and after[0] != self.tokenizer.bos_token_id:
            stop.add(after[0])
        return frozenset(stop)


def read_template(source: str) -> str:
    """The Jinja source behind a path, or behind the name of one of the presets.

    Raises:
        UserError: there is no such file or preset, or it is not a chat template.
    """
    presets = {path.stem: path for path in TEMPLATES.glob("*.jinja")}
    path = presets.get(source, Path(os.path.expanduser(source)))
    if not os.path.isfile(path):  # Path.is_file raises for what cannot be a path
        if path.suffix or "/" in source:
            raise UserError(f"the chat template {source} does not exist; give a Jinja file.")
        raise unknown("chat template", source, presets)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the chat template {source}: {error}") from error
    if "messages" not in text:
        raise UserError(f"{source} is not a chat template: it never mentions 'messages'.")
    return text


def without_thinking(text: str) -> str:
    """The answer behind a closed `<think>` block; a text without one is left alone."""
    return text.rpartition("</think>")[2].lstrip() if "</think>" in text else text


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put what the system messages say in front of the first user message (Gemma's convention)."""
    system = [m["content"] for m in messages if m["role"] == "system" and m["content"].strip()]
    rest = [message for message in messages if message["role"] != "system"]
    if not system:
        return rest
    for message in rest:
        if message["role"] == "user":
            message["content"] = "\n\n".join([*system, message["content"]])
            return rest
    return [{"role": "user", "content": "\n\n".join(system)}, *rest]
