"""Tokenizes as llama.cpp does, from nothing but the keys of a GGUF file.

Follows llama-vocab.cpp (SPM and BPE vocabularies) and uses nothing of the studio: its result is
what another program makes of the file.
"""

import heapq
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

_APOSTROPHES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _APOSTROPHES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _APOSTROPHES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
# llama.cpp's own approximation: letters outside of ASCII are large and small at once, marks neither
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?((?=\p{L})[^a-z])*((?=\p{L})[^A-Z])+"
    r"|[^\r\n\p{L}\p{N}]?((?=\p{L})[^a-z])+((?=\p{L})[^A-Z])*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> patterns that cut a text one after another, and whether a word that is a
# token stays whole without regard to the merges
CUTS = {
    "gpt-2": ((_GPT2,), False),
    "llama-bpe": ((_LLAMA3,), True),
    "llama3": ((_LLAMA3,), True),
    "smaug-bpe": ((_LLAMA3,), False),
    "dbrx": ((_LLAMA3,), False),
    "qwen2": ((_QWEN2,), False),
    "deepseek-r1-qwen": ((_QWEN2,), False),
    "tekken": ((_TEKKEN,), True),
    "smollm": ((r"\p{N}", _GPT2), False),
}
# Kinds of values in a file.
STRING, ARRAY = 8, 9
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
ADDS_BOS = ("llama-bpe", "llama3", "tekken")  # where the file does not say
UNKNOWN, CONTROL, USER = 2, 3, 4
# Texts that llama.cpp takes for the end of an answer, wherever they are in a vocabulary.
ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["),
    "<｜end▁of▁sentence｜>",
    # and of the tokens for filling in the middle: padding, repository, file
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>"),
    *("<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
}
SHOWN = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}


class UnknownKind(ValueError):
    """A kind of tokenizer that is not read here."""


class FileTokenizer:
    """The tokenizer that a GGUF file holds.

    Args:
        keys: those that begin with `tokenizer.`, with plain values.

    Attributes:
        ends: ids after which llama.cpp ends an answer.
        special: ids of tokens that a text may spell out.
        prefixes: whether a space is put in front of every text between special tokens.
        template: the chat template, or ''.

    Raises:
        UnknownKind: a tokenizer of a kind that is not read here.
    """

    def __init__(self, keys: Mapping[str, Any]) -> None:
        def get(name: str, default: Any = None) -> Any:
            return keys.get(f"tokenizer.ggml.{name}", default)

        self.texts: list[str] = list(get("tokens"))
        self.model = get("model")
        pre = get("pre", "default")
        pieces = self.model == "llama"
        if not pieces and (self.model != "gpt2" or pre not in CUTS):
            raise UnknownKind(f"a tokenizer of kind {self.model}, {pre}")
        self.template = keys.get("tokenizer.chat_template", "")
        self.bos, self.eos = get("bos_token_id", 1 if pieces else 11), get("eos_token_id", 2)
        self.adds_bos = get("add_bos_token", pieces or pre in ADDS_BOS)
        self.adds_eos = get("add_eos_token", False)
        self._ids = {text: number for number, text in enumerate(self.texts)}
        kinds = get("token_type", [])
        special = {i for i, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL, USER)}
        named = {self._ids[text] for text in ENDS | SHOWN if text in self._ids}
        self.ends = {self._ids[text] for text in ENDS if text in self._ids} | {self.eos}
        self.ends |= {get(name) for name in ("eot_token_id", "eom_token_id")} - {None}
        order = sorted(special | named, key=lambda i: -len(self.texts[i].encode()))
        self._special = [(self.texts[i], i) for i in order]
        self.special = {number for _, number in self._special}
        self.prefixes = pieces and get("add_space_prefix", True)
        if pieces:
            self._scores = get("scores") or [0.0] * len(self.texts)
        else:
            cuts, whole = CUTS[pre]
            self._merger = _merger(self._ids, get("merges", []), cuts, whole)

    @classmethod
    def read(cls, path: Path) -> "FileTokenizer":
        """The tokenizer of a file.

        Raises:
            UnknownKind: as above.
            ValueError: the file is damaged, or not GGUF.
        """
        return cls(read_keys(path, "tokenizer."))

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Tokens of a text; special tokens that it spells out count as such.

        Args:
            add_special: BOS and EOS, where the file says that they are added.
        """
        found = [self.bos] if add_special and self.adds_bos else []
        after_special = True
        for part in self.parts(text):
            if isinstance(part, int):
                found.append(part)
            else:
                found += self.piece(part, after_special)
            after_special = isinstance(part, int)
        return found + ([self.eos] if add_special and self.adds_eos else [])

    def piece(self, text: str, after_special: bool = True) -> list[int]:
        """Tokens of a text without special tokens, which begins the whole or follows one."""
        if self.model != "llama":
            return self._merger.encode(text, add_special_tokens=False).ids
        space = " " if self.prefixes and after_special else ""
        return self._joined((space + text).replace(" ", "▁"))

    def prompt(self, text: str) -> list[int]:
        """Tokens of a rendered chat, with one BOS where the template and the file both have it."""
        bos = self.texts[self.bos]
        return self.encode(text.removeprefix(bos) if self.adds_bos else text)

    def parts(self, text: str) -> list[str | int]:
        """A text cut at its special tokens, the longest first: texts, and ids of special tokens."""
        parts: list[str | int] = [text] if text else []
        for special, number in self._special:
            if special not in text:
                continue
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int):
                    cut.append(part)
                    continue
                for i, piece in enumerate(part.split(special)):
                    cut += [number] if i else []
                    cut += [piece] if piece else []
            parts = cut
        return parts

    def _joined(self, text: str) -> list[int]:
        """SentencePiece's way: join the neighbours whose piece has the highest score, the leftmost
        first, until no two of them are a piece."""
        symbols: list[str] = list(text)
        left = list(range(-1, len(symbols) - 1))
        right = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, str]] = []

        def push(one: int, two: int) -> None:
            if one >= 0 and two >= 0 and (piece := symbols[one] + symbols[two]) in self._ids:
                heapq.heappush(queue, (-self._scores[self._ids[piece]], one, two, piece))

        for i in range(len(symbols) - 1):
            push(i, i + 1)
        while queue:
            _, one, two, piece = heapq.heappop(queue)
            if not symbols[one] or not symbols[two] or symbols[one] + symbols[two] != piece:
                continue
            symbols[one], symbols[two] = piece, ""
            right[one] = right[two]
            if right[two] >= 0:
                left[right[two]] = one
            push(left[one], one)
            push(one, right[one])
        found: list[int] = []
        for symbol in filter(None, symbols):
            if symbol in self._ids:
                found.append(self._ids[symbol])
            else:
                found += [self._ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        return found


def read_keys(path: Path, prefix: str = "") -> dict[str, Any]:
    """Keys of a GGUF file that begin so -> values. The package gguf takes half a minute for a
    vocabulary of 128,000 tokens; this takes a second.

    Raises:
        ValueError: the file is damaged, or not GGUF.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:

        def raw(count: int) -> bytes:
            if count > size or len(found := file.read(count)) != count:
                raise ValueError("the file ends too early")
            return found

        def number(code: str) -> Any:
            return struct.unpack(f"<{code}", raw(struct.calcsize(code)))[0]

        def value(kind: int) -> Any:
            if kind == STRING:
                return raw(number("Q")).decode("utf-8")
            if kind == ARRAY:
                inner, count = number("I"), number("Q")
                if inner in NUMBERS:
                    code = NUMBERS[inner]
                    return list(
                        struct.unpack(f"<{count}{code}", raw(count * struct.calcsize(code)))
                    )
                return [value(inner) for _ in range(count)]
            if kind not in NUMBERS:
                raise ValueError(f"a value of kind {kind}")
            return number(NUMBERS[kind])

        if raw(4) != b"GGUF" or number("I") not in (2, 3):
            raise ValueError("it is not a GGUF file of version 2 or 3")
        _tensors, count = number("Q"), number("Q")
        found = {}
        for _ in range(count):
            name, kind = value(STRING), number("I")
            found[name] = value(kind)
    return {name: entry for name, entry in found.items() if name.startswith(prefix)}


def _merger(
    ids: dict[str, int], merges: list[str], cuts: tuple[str, ...], whole: bool
) -> Tokenizer:
    """Bytes, cut by patterns and merged in the order of the list."""
    halves = ((left, right) for left, _, right in (merge.partition(" ") for merge in merges))
    pairs = [pair for pair in halves if {*pair, "".join(pair)} <= ids.keys()]
    merger = Tokenizer(models.BPE(vocab=ids, merges=pairs, ignore_merges=whole))
    split = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merger.pre_tokenizer = pre_tokenizers.Sequence([*split, in_bytes])
    return merger
