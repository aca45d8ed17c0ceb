"""From messages to tokens: the model's own chat template, and the traps around it.

The traps:

* a template that writes BOS and a tokenizer that adds it too (every prompt would start twice);
* a template that refuses the system role, or drops it without a word;
* a template that wants a message as a list of parts, and writes nothing where it is plain text;
* marks of reasoning that are special tokens, and so would be gone before anything is split there;
* thinking models: one setting for measuring, chat and metrics, also where the template ignores it;
* no template at all, no pad token, an end-of-turn token that the configuration does not list.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from sst_ui import reach
from sst_ui.errors import UserError, unknown
from sst_ui.model.load import bounded_jinja, reasoning
from sst_ui.model.load.step_limit import limited
from sst_ui.paths import PRESETS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Form = Callable[[str], Any]  # how a template wants the content of a message

TEMPLATES = PRESETS / "templates"
# What a template may raise on a conversation.
REFUSAL = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError,
    RecursionError,
)  # fmt: skip
HALF = re.compile("[\ud800-\udfff]")  # a surrogate; Python's strings hold no pairs of them
LONGEST = 200_000  # characters that a template may write beside the messages,
REPEATED = 20  # and how often it may write those
_PROBE = "9d2fqz"  # a word that no template contains by itself
_PROBES = ("9d2fqz", "7k4wjx", "3h8vqy")  # of a longer conversation, turn by turn


class Refused(Exception):
    """What a template says of a conversation that it does not take."""


def _plain(text: str) -> str:
    return text


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


FORMS: tuple[Form, ...] = (_plain, _parts)


class ChatTemplate:
    """How one tokenizer writes a conversation. Thread-safe, immutable once built.

    Attributes:
        text: the Jinja source.
        accepts_system: whether a system message reaches the prompt as a message of its own.
        keeps_history: whether earlier turns reach the prompt.
        opened: the block of reasoning that the prompt itself opens (with thinking on); else empty.
        adds_bos: whether the tokenizer, left alone, starts every text with BOS.
        stop: ids after which the assistant's turn is over, from tokenizer and template.
        pad: id to fill short rows with; always masked, so any id will do.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        source: str | None = None,
        enable_thinking: bool = False,
    ) -> None:
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
        bounded_jinja.install()
        self.text = str(tokenizer.chat_template)
        ids = tokenizer(_PROBE)["input_ids"]
        bos = tokenizer.bos_token_id
        self.adds_bos = bos is not None and bool(ids) and ids[0] == bos
        self._forms: dict[str, Form] = {}
        self._read_forms()
        self.stop = self._stop()
        self.opened = reasoning.opened(self._behind_the_user())
        self._hidden = self._special()
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
        self.pad = next(token for token in candidates if token is not None)

    def format(self, messages: Sequence[Message]) -> str:
        """The prompt as text, generation prompt included.

        Args:
            messages: a conversation that ends with the user's message.

        Raises:
            UserError: the template refuses the conversation, or does not come to an end.
        """
        own = [dict(message) for message in messages]
        if not own:
            raise UserError("the conversation is empty; it needs at least one message.")
        if not self.accepts_system:
            own = _fold_system(own)
        if not self.keeps_history and any(m["role"] == "assistant" for m in own):
            raise UserError(
                "the chat template leaves out earlier turns, so this model can neither go on with"
                " a conversation nor read worked examples; start a new one, use shots=0, or give"
                " another template with model.chat_template."
            )
        try:
            text = self._render(own, add_generation_prompt=True)
        except Refused as error:
            roles = ", ".join(str(message.get("role")) for message in own)
            raise UserError(
                f"the chat template refuses a conversation of {roles}: {error}"
            ) from error
        if not self.enable_thinking and (close := reasoning.closing(text)):
            # the template opens it whatever the setting says
            text = f"{text.rstrip()}\n\n{close}\n\n"
        return text

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt as tokens, with exactly one BOS if template or tokenizer want one."""
        ids = self.tokens(self.format(messages))
        bos = self.tokenizer.bos_token_id
        if self.adds_bos and (not ids or ids[0] != bos):
            ids.insert(0, bos)
        return ids

    def answer_tokens(self, messages: Sequence[Message], text: str) -> list[int]:
        """The tokens of a given answer as they follow `encode(messages)`, with one that ends it.

        Templates may put something between the generation prompt and an answer (a space, a line),
        and tokenizers may write the beginning of a text otherwise than its middle; where a template
        rewrites what came before, the text by itself has to do.
        """
        end = sorted(self.stop)[:1]
        try:
            whole = self.tokens(
                self._render([*messages, {"role": "assistant", "content": text}], False)
            )
        except Refused:
            whole = []
        prompt = self.tokens(self.format(messages))
        after = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.tokens(text)
        stops = [place for place, token in enumerate(after) if token in self.stop]
        return [*after[: stops[0] if stops else None], *end]

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text as it stands: nothing added in front or behind."""
        if half := HALF.search(text):
            raise UserError(
                f"the text holds half a character (U+{ord(half[0]):04X}, a surrogate without its "
                f"partner) at place {half.start() + 1}, which no tokenizer can read; remove it."
            )
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones; half characters show as U+FFFD."""
        with self._lock:
            return self.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )

    def piece(self, token: int) -> str:
        """One token as a reader can know it: with the space in front of it, special ones by name,
        and a part of a character as the tokenizer calls it."""
        with self._lock:
            raw = self.tokenizer.convert_ids_to_tokens(token)
            if raw is None:  # an embedding that no token belongs to
                return f"<{token}>"
            text = self.tokenizer.decode(
                [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        if not text or "\ufffd" in text:
            return str(raw)
        return f" {text}" if str(raw).startswith("▁") and not text.startswith(" ") else text

    def answer(self, ids: Sequence[int]) -> str:
        """The text of an answer: what it is `written`, behind the block that the prompt opened."""
        return self.opened + self.written(ids)

    def written(self, ids: Sequence[int]) -> str:
        """As `decode`, but the marks around reasoning stay where they are special tokens.

        `sst_ui.model.load.reasoning` can then tell what was thought from what was said.
        """
        if self._hidden is None:
            return self.decode(ids)
        kept = [token for token in ids if int(token) not in self._hidden]
        with self._lock:
            return self.tokenizer.decode(
                kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )

    def _special(self) -> frozenset[int] | None:
        """Special tokens that are never shown; None where no mark of reasoning is among them."""
        name = self.tokenizer.convert_ids_to_tokens
        special = {i: name(i) for i in self.tokenizer.all_special_ids}
        added = self.tokenizer.added_tokens_decoder
        special |= {i: str(token) for i, token in added.items() if token.special}
        known = reasoning.marks()
        around = [mark for pair in known.tags for mark in pair]
        kept = {i for i, token in special.items() if any(token in mark for mark in around)}
        if known.channel[1] in special.values():
            kept |= {i for i, token in special.items() if token in known.channel}
        kept -= self.stop
        return frozenset(special.keys() - kept) if kept else None

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        given = [
            {**m, "content": self._forms.get(m["role"], _plain)(m["content"])} for m in messages
        ]
        try:
            with limited(sum(len(m["content"]) for m in messages)):
                text = self.tokenizer.apply_chat_template(
                    given,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    enable_thinking=self.enable_thinking,
                )
        except UserError:
            raise
        except REFUSAL as error:
            raise Refused(str(error)) from error
        if len(text) > LONGEST + REPEATED * sum(len(m["content"]) for m in messages):
            raise UserError(
                f"the chat template writes {len(text):,} characters for this conversation, far "
                "more than it holds; give another one with model.chat_template."
            )
        return text

    def _writes(self, roles: Sequence[str], **forms: Form) -> bool:
        """Whether every message of a conversation of these roles reaches the prompt.

        Args:
            forms: of the content of a role, kept from then on if so.
        """
        before, self._forms = self._forms, {**self._forms, **forms}
        talk = [{"role": r, "content": p} for r, p in zip(roles, _PROBES, strict=False)]
        try:
            text = self._render(talk, add_generation_prompt=roles[-1] == "user").casefold()
            # a list that is printed as Python writes it, is not what the template is for
            good = all(m["content"] in text and f"'{m['content']}'" not in text for m in talk)
        except Refused:
            good = False
        if not good:
            self._forms = before
        return good

    def _read_forms(self) -> None:
        """Find the form in which each role's message reaches the prompt.

        Raises:
            UserError: a user's message reaches it in no form.
        """
        if not any(self._writes(["user"], user=form) for form in FORMS):
            raise UserError(
                "the chat template does not write the user's message, neither as text nor as a"
                " list of parts; give another one with model.chat_template."
            )
        turns = ["user", "assistant", "user"]
        forms = sorted(FORMS, key=lambda form: form is not self._forms["user"])
        # a single pair is not enough: some templates write the last turn only
        self.keeps_history = any(self._writes(turns, assistant=form) for form in forms)
        self.accepts_system = any(
            self._writes(["system", "user"], system=form)
            and (not self.keeps_history or self._writes(["system", "user", "assistant"]))
            for form in forms
        )

    def _behind_the_user(self) -> str:
        """What stands behind the user's message in a prompt."""
        return self.format([{"role": "user", "content": _PROBE}]).rpartition(_PROBE)[2]

    def _stop(self) -> frozenset[int]:
        """EOS, and the special token with which the template closes an assistant's turn."""
        stop = {self.tokenizer.eos_token_id} - {None}
        conversation = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        try:
            text = self._render(conversation, add_generation_prompt=False)
        except Refused as error:
            raise UserError(
                f"the chat template cannot write a plain conversation: {error}"
            ) from error
        after = self.tokens(text.rpartition(_PROBE)[2].lstrip()) if _PROBE in text else []
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
    if source not in presets and (path.suffix or "/" in source or os.path.exists(path)):
        reach.check(path)
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
