"""Tokenizers made in memory, and hosts of tiny random models that can talk through them.

Knows byte-level vocabularies without merges: 5 special tokens, then one token a byte. So every text
has tokens, kana take three each, and nothing is fetched.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sst_ui.model.inference.replies import replies
from sst_ui.model.load.reasoning import split
from sst_ui.model.runtime.host import Host
from sst_ui.paths import PRESETS
from sst_ui.recipe import ModelSpec
from tests.tiny import tiny

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
VOCAB = len(SPECIAL) + 256
CHATML = (PRESETS / "templates" / "chatml.jinja").read_text(encoding="utf-8")


def byte_tokenizer(
    template: str | None = CHATML, adds_bos: bool = False, pad: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template; it may add BOS itself and may lack pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_host(
    name: str = "llama", tokenizer=None, spec: ModelSpec | None = None, **overrides
) -> Host:
    """A host of a random model of one of the architectures in tests/tiny.py."""
    model = tiny(name, **{"vocab_size": VOCAB, **overrides})
    tokenizer = tokenizer or byte_tokenizer()
    return Host(spec or ModelSpec(id=f"tiny-{name}"), model, tokenizer, digest=f"tiny-{name}")


def answers(host: Host, prompts, rows, max_new_tokens: int, batch: int | None = None):
    """The texts of `replies`, without the thinking before an answer."""
    found = yield from replies(host, prompts, rows, max_new_tokens, batch)
    texts = [host.answer(reply.tokens) for reply in found]
    return [split(text)[1] if split(text)[0] else text for text in texts]


def every_pass(monkeypatch, forward) -> None:
    """Let `forward` compute each pass of an answer, in the running batch and outside of it."""
    for name in ("generate", "running_batch", "joining"):
        monkeypatch.setattr(f"sst_ui.model.inference.{name}.forward", forward)
