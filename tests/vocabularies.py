"""Small tokenizers of the kinds that language models have, trained in memory in a moment.

Byte-level BPE with the cuts of GPT-2, Llama 3, Qwen 2, SmolLM and Mistral Nemo, and SentencePiece's
BPE with byte fallback as in Llama 2, Mistral and Gemma. Every one has the chat template below.
"""

import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from sst_ui.data import prompt_sets

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|bot|>")
CHAT = (
    "{{ '<s>' }}{% for m in messages %}"
    "{{ ('<|user|>\n' if m['role'] == 'user' else '<|bot|>\n') + m['content'] + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|bot|>\n' }}{% endif %}"
)
# As Mistral's: the text follows the special token behind a space, or right away.
SPACED = CHAT.replace("\n", " ")
TIGHT = CHAT.replace("|>\n", "|>")
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "{{ '<s>[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' "
    "else ' ' + m['content'] + ' </s>' }}{% endfor %}"
)

_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    "gpt2": None,
    "qwen2": _WORDS + _REST,
    "llama3": _WORDS + "{1,3}" + _REST,
    "tekken": TEKKEN,
    "smollm": None,
}
WORLD = (
    "多くの人が東京に住んでいます。", "请用一句话解释什么是黑洞?", "한국의 수도는 어디입니까?",
    "Où est-ce que l'été commence? Größe, naïve.", "Кто написал «Войну и мир»?",
    "def f(x):\n    return {'a': [x ** 2]}\n\n\nprint(f(12345))", "🙂🙂 ... !!! --- ===",
    "  a   b    c",
)  # fmt: skip


def _texts() -> list[str]:
    names = ("demo/harmless_heldout", "demo/lookalike")
    return [p.prompt for name in names for p in prompt_sets.load(name).prompts] + list(WORLD) * 5


def _wrapped(backend: Tokenizer, template: str, bos: bool) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(list(SPECIAL))
    if bos:
        number = backend.token_to_id("<s>")
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", number)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast


def byte_level(
    cut: str = "gpt2",
    template: str = CHAT,
    bos: bool = False,
    prefix: bool = False,
    composed: bool = False,
    whole: bool | None = None,
) -> PreTrainedTokenizerFast:
    """Bytes and merges.

    Args:
        cut: a name of `CUTS`.
        bos: whether the tokenizer puts BOS in front.
        prefix: whether a space is put in front of texts.
        composed: whether texts are put into NFC first.
        whole: whether words that are tokens stay whole without merges; None for the cut's habit.
    """
    backend = Tokenizer(models.BPE())
    digits = [pre_tokenizers.Digits(individual_digits=True)] if cut == "smollm" else []
    split = [pre_tokenizers.Split(Regex(CUTS[cut]), "isolated")] if CUTS[cut] else digits
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=CUTS[cut] is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, last]) if split else last
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(), trainer)
    backend.model.ignore_merges = cut in ("llama3", "tekken") if whole is None else whole
    backend.decoder = decoders.ByteLevel()
    if composed:
        backend.normalizer = normalizers.NFC()
    return _wrapped(backend, template, bos)


def pieces(
    scheme: str = "Prepend",
    template: str = CHAT,
    bos: bool = True,
    split: bool = False,
    fallback: bool = True,
    own: tuple[AddedToken, ...] = (),
) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE: spaces are ▁, and characters that are not known are bytes.

    Args:
        scheme: what puts a space in front: `Prepend` (a normaliser, as Llama 2 was published),
            Metaspace's `always`, `first` or `never`, or `Replace` for nothing (Gemma).
        split: whether Metaspace cuts words before merging.
        own: tokens that are not special.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=600, limit_alphabet=120, show_progress=False)
    trained.train_from_iterator(_texts(), trainer)
    learned = json.loads(trained.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    listed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    backend = Tokenizer(
        models.BPE(
            {word: i for i, word in enumerate(listed)},
            [tuple(merge) for merge in learned["merges"]],
            byte_fallback=fallback,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    replaced = normalizers.Replace(" ", "▁")
    if scheme == "Prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
    elif scheme == "Replace":
        backend.normalizer = replaced
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if own:
        backend.add_tokens(list(own))
    return _wrapped(backend, template, bos)
