"""The one resident model: its tokenizer, its edit hooks and the lock that everyone shares.

The only mutable thing in the program. Knows how to make prompts and to give turns; does not know
what is asked of the model. Nobody's edit is kept here: every call brings its own rows.
"""

import gc
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from sst_ui.errors import UserError
from sst_ui.model.architecture import discover
from sst_ui.model.fit import Report, inspect
from sst_ui.model.live import LiveEdits, Plan
from sst_ui.model.loading import contents, identity, read_model
from sst_ui.model.source import open_source
from sst_ui.model.template import ChatTemplate, Message
from sst_ui.model.turns import Turns
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

__all__ = ["Host", "Report", "inspect", "load"]


class Host:
    """A loaded model that many may use at once.

    Attributes:
        spec: what was asked for.
        model, tokenizer: eval mode, no gradients; weights are never written to.
        architecture: who writes to the residual stream.
        live: the hooks that apply an edit while the model computes.
        digest: identity of weights, template and settings, for caches.
        files: identity of the weight files that were loaded; '' for a model that came from none.
        layers, hidden: number of decoder layers, width of the residual stream.
        context: longest sequence in tokens.
        parameters: number of parameters, tied ones counted once.
        device: where input tokens go.
        stop: ids that end an answer.
        pad: id for filling short rows (always masked).
    """

    def __init__(self, spec: ModelSpec, model, tokenizer, digest: str = "", name: str = "") -> None:
        self.spec = spec
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, spec.chat_template, spec.enable_thinking)
        self.architecture = discover(model)
        self.live = LiveEdits(self.architecture)
        self.digest = digest
        self.files = ""
        self.name = name or spec.id
        self.layers = len(self.architecture.layers)
        self.hidden = self.architecture.hidden
        self.context = _context(model.config, tokenizer)
        self.parameters = model.num_parameters()  # knows that 4-bit weights are packed
        self.device = model.get_input_embeddings().weight.device
        self.stop = self.template.stop | _stop(model)
        self.pad = self.template.pad
        self._turns = Turns()

    def format(self, messages: Sequence[Message]) -> str:
        """The conversation as the model will read it, generation prompt included."""
        return self.template.format(messages)

    def encode(self, prompt: str | Sequence[Message], system: str | None = None) -> list[int]:
        """The tokens of a prompt: chat template, generation prompt, one BOS at most.

        Args:
            prompt: a user's message, or a whole conversation.
            system: a system message to put in front.

        Raises:
            UserError: the prompt leaves no room in the context, or the template refuses it.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        ids = self.template.encode(messages)
        if len(ids) >= self.context:
            raise UserError(
                f"the prompt has {len(ids)} tokens and {self.name} reads {self.context}, answer "
                "included; shorten it."
            )
        return ids

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text as it stands, without template or special tokens."""
        return self.template.tokens(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones or half a character at the end."""
        return self.template.decode(ids).rstrip("\ufffd")

    @contextmanager
    def step(self, plan: Plan | None = None) -> Iterator[None]:
        """One forward pass with these rows' edits. Hold it for nothing longer.

        Callers are served in the order they ask, so chats and metrics take turns token by token.
        """
        with self._turns:
            if plan is None:
                yield
            else:
                with self.live.applied(plan):
                    yield


def load(spec: ModelSpec) -> Generator[Progress, None, Host]:
    """Check, fetch and load a model.

    Yields:
        Progress of the stages inspect, download (bytes), load and hooks.

    Raises:
        UserError: it does not exist, does not fit, or is not something that can be loaded safely.
    """
    yield Progress("inspect", 0, 1, spec.id)
    gc.collect()  # a model given up before holds its memory until then: hooks make cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    source = open_source(spec)
    report = inspect(spec, source)
    if not report.fits:
        raise UserError(report.messages[-1])
    yield Progress("inspect", 1, 1, report.summary())
    folder = yield from source.download()
    yield Progress("load", 0, 1, report.summary())
    model, tokenizer = read_model(spec, folder, report)
    yield Progress("load", 1, 1, report.summary())
    yield Progress("hooks", 0, 1)
    host = Host(spec, model, tokenizer, name=source.name)
    host.digest = identity(
        spec, folder, source.weights(), source.commit, host.template.text, report.dtype
    )
    host.files = contents(folder, source.weights(), source.commit)
    odd = len(host.live.account.problems)
    more = f"; {odd} of them do not add up and cannot be ablated" if odd else ""
    yield Progress("hooks", 1, 1, f"{host.layers} layers of {host.hidden}{more}")
    return host


def _context(config, tokenizer) -> int:
    """The longest sequence in tokens, from the configuration, else the tokenizer, else no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(length := getattr(text, name, None), int) and length > 0:
            return length
    length = tokenizer.model_max_length
    return int(length) if length < 1e9 else 1 << 20


def _stop(model) -> frozenset[int]:
    """Ids that end an answer, from the generation and the model configuration."""
    stop = set()
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        stop |= set(ids if isinstance(ids, list | tuple) else [ids]) - {None}
    return frozenset(stop)
