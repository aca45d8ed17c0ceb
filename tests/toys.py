"""A whole `Host` around a tiny random model: bytes as tokens, a chat template, no files.

For tests of everything between a prompt and the residual stream; answers are noise.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sst_ui.model.host import Host
from sst_ui.recipe import ModelSpec
from tests.tiny import tiny

SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}<|assistant|>"
)


def byte_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, in front of them the special tokens; 263 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


def toy_host(name: str = "llama", seed: int = 0, **overrides) -> Host:
    """A host of one of the tiny architectures, with an identity of its own for the caches."""
    model = tiny(name, seed, vocab_size=264, **overrides)
    digest = f"toy-{name}-{seed}-{sorted(overrides.items())}"
    return Host(ModelSpec(id=name), model, byte_tokenizer(), digest, f"tiny {name}")
