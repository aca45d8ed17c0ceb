"""The one resident model: its tokenizer, its edit hooks and the lock that everyone shares.

With the batch that runs on it (`model.inference.running_batch`) the only mutable thing in the
program. No edit is kept here: every call brings its own rows.
"""

import gc
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from sst_ui.errors import UserError
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import LiveEdits, Plan
from sst_ui.model.load.chat_template import ChatTemplate, Message
from sst_ui.model.load.fingerprint import stamp
from sst_ui.model.load.load import contents, identity, read_model
from sst_ui.model.load.memory import Report, inspect
from sst_ui.model.load.source import open_source
from sst_ui.model.runtime.fair_lock import Turns
from sst_ui.model.weights.stored_tensors import check_stored
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SAMPLE = "Hello, 你好, こんにちは 1"  # something that every tokenizer knows a part of
SETTINGS = ("generation_config.json", "tokenizer_config.json")  # read by others, some in silence

__all__ = ["Host", "Report", "inspect", "load"]


class Host:
    """A loaded model that many may use at once.

    Attributes:
        spec: what was asked for.
        model, tokenizer: eval mode, no gradients; weights are never written to.
        architecture: who writes to the residual stream.
        live: the hooks that apply an edit while the model computes.
        digest: identity of weights, template and settings, for caches.
        files: identity of the files that were loaded; '' for a model that came from none.
        warnings: what a person should know about the files, in sentences.
        layers, hidden: number of decoder layers, width of the residual stream.
        context: longest sequence in tokens.
        parameters: number of parameters, tied ones counted once.
        device: where input tokens go.
        lent: whether that is a GPU which this process alone has, and for a short time.
        vocabulary: number of token embeddings.
        stop: ids that end an answer.
        pad: id for filling short rows (always masked).
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        digest: str = "",
        name: str = "",
    ) -> None:
        self.spec = spec
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, spec.chat_template, spec.enable_thinking)
        self.architecture = discover(model)
        self.live = LiveEdits(self.architecture)
        self.digest = digest
        self.files = ""
        self.warnings: tuple[str, ...] = ()
        self.name = name or spec.id
        self.layers = len(self.architecture.layers)
        self.hidden = self.architecture.hidden
        self.context = _context(model.config, tokenizer)
        self.parameters = model.num_parameters()  # knows that 4-bit weights are packed
        table = model.get_input_embeddings().weight
        self.device = table.device
        self.lent = False
        self.vocabulary = _rows(table, model.config)
        stop = self.template.stop | _stop(model)
        self.stop = frozenset(t for t in stop if t in range(self.vocabulary))
        self.pad = self.template.pad if self.template.pad in range(self.vocabulary) else 0
        self._turns = Turns()
        if not set(self.template.tokens(SAMPLE)) - {tokenizer.unk_token_id}:
            raise UserError(
                f"the tokenizer of {self.name} has no token for any part of ordinary text "
                f"({SAMPLE}); its files are damaged or incomplete. Fetch them again."
            )
        self.encode("Hello")  # a template that this model cannot read is found now

    def forked(self) -> None:
        """In a fork of the process: nobody else waits for a turn; and to the GPU, if one is here.

        What is the parent's stays as it is.
        """
        self._turns = Turns()
        if self.device.type == "cpu" and torch.cuda.is_available():
            self.model.to("cuda")
            self.lent = True
            self.live.forget()  # what was prepared on the CPU
            self.device = self.model.get_input_embeddings().weight.device

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
        ids = self._known(self.template.encode(messages))
        if len(ids) >= self.context:
            raise UserError(
                f"the prompt has {len(ids)} tokens and {self.name} reads {self.context}, answer "
                "included; shorten it."
            )
        return ids

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text as it stands, without template or special tokens."""
        return self._known(self.template.tokens(text))

    def _known(self, ids: list[int]) -> list[int]:
        """The same tokens, all of which have an embedding."""
        if ids and not 0 <= max(ids) < self.vocabulary:
            token = max(ids)
            raise UserError(
                f"the tokenizer of {self.name} makes token {token} "
                f"({str(self.tokenizer.convert_ids_to_tokens(token))[:40]!r}), and the model has "
                f"{self.vocabulary} embeddings: the two do not belong together, or the chat "
                "template needs tokens that were never added. Give another model.chat_template."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones or half a character at the end."""
        return self.template.decode(ids).rstrip("\ufffd")

    def answer(self, ids: Sequence[int]) -> str:
        """The text of an answer with the marks around its reasoning; see `ChatTemplate.answer`."""
        return self.template.answer(ids).rstrip("\ufffd")

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
    for name in SETTINGS:
        if name in source.files:
            source.read(name)
    weights = [folder / name for name in source.weights()]
    check_stored(spec, folder, weights)
    before = [stamp(path) for path in weights]
    model, tokenizer, warnings = read_model(spec, folder, report)
    yield Progress("load", 1, 1, report.summary())
    files = yield from contents(folder, source.weights())
    if [stamp(path) for path in weights] != before:
        raise UserError(f"the files of {source.name} changed while they were loaded; try again.")
    yield Progress("hooks", 0, 1)
    host = Host(spec, model, tokenizer, name=source.name)
    host.files = files
    host.digest = identity(spec, files, host.template.text, report.dtype)
    _try(host)
    odd = len(host.live.account.problems)
    if odd:
        do, are = ("does", "it is") if odd == 1 else ("do", "they are")
        warnings += (
            f"{odd} of {host.layers} layers {do} not add up to what "
            f"{'its' if odd == 1 else 'their'} modules write; {are} not ablated.",
        )
    host.warnings = warnings
    for warning in warnings:
        yield Progress("hooks", 0, 1, warning=warning)
    yield Progress("hooks", 1, 1, f"{host.layers} layers of {host.hidden}")
    return host


@torch.inference_mode()
def _try(host: Host) -> None:
    """Raises UserError for a model that does not compute: settings that do not fit its weights,
    weights or settings that are not numbers, a type whose range is too short."""
    ids = torch.tensor([host.encode("Hello")], device=host.device)
    try:
        with host.step():
            logits = host.model(input_ids=ids, use_cache=False).logits
        broken = bool((logits.isnan() | (logits == torch.inf)).any())  # -inf masks, in some
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{host.name} was loaded but cannot compute: {why}") from error
    if broken:
        dtype = str(host.model.dtype).removeprefix("torch.")
        raise UserError(
            f"{host.name} computes numbers that are not finite (NaN) in {dtype}: its weights or "
            "its config.json are damaged, or the type's range is too small for it "
            "(model.dtype bfloat16 or float32)."
        )


def _rows(table: torch.Tensor, config: "PreTrainedConfig") -> int:
    """How many tokens have an embedding; quantised tables are packed, the configuration is not."""
    return table.shape[0] if table.dim() == 2 else int(config.get_text_config().vocab_size)


def _context(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The longest sequence in tokens, from the configuration, else the tokenizer, else no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(length := getattr(text, name, None), int) and length > 0:
            return length
    length = tokenizer.model_max_length
    return int(length) if length < 1e9 else 1 << 20


def _stop(model: "PreTrainedModel") -> frozenset[int]:
    """Ids that end an answer, from the generation and the model configuration."""
    stop = set()
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        ids = ids if isinstance(ids, list | tuple) else [ids]
        if odd := [token for token in ids if not isinstance(token, int | None)]:
            raise UserError(
                f"eos_token_id is {str(odd[0])[:80]!r}, not the number of a token; correct "
                "generation_config.json or config.json."
            )
        stop |= {*ids} - {None}
    return frozenset(stop)
