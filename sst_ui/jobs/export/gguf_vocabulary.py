"""A tokenizer in GGUF's keys: what llama.cpp can express of it; the rest is refused by name.

Takes the tokenizer that the live model uses, and not its file: transformers rebuilds some of them
when it loads them. Whether a written file really gives the same tokens is for `gguf_compare.py`.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sst_ui.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens
SPACE = "▁"  # ▁, a space in SentencePiece's vocabularies
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is cut before merging, and whether a whole word that is a token stays one, whatever the
# merges say -> llama.cpp's name for it.
CUTS = {
    (_WORDS + _REST, False): "qwen2",
    (_WORDS + "{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + "{1,3}" + _REST, False): "smaug-bpe",
    ("gpt2", False): "gpt-2",
    ("digits gpt2", False): "smollm",
}


@dataclass(frozen=True)
class Kind:
    """How a tokenizer works, in llama.cpp's terms.

    Attributes:
        model: `gpt2` for bytes and merges, `llama` for SentencePiece's pieces.
        pre: name of the cut before merging.
        prefix: what puts a space in front of a text, as its tokenizer names it; '' for nothing.
        composed: whether texts are put into Unicode's form NFC first, which llama.cpp does not.
    """

    model: str
    pre: str
    prefix: str
    composed: bool = False


def backend(tokenizer: Any) -> dict[str, Any]:
    """What the library `tokenizers` would save of a tokenizer.

    Raises:
        UserError: the tokenizer is not one of that library.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise _refused(f"is a {type(tokenizer).__name__} without tokenizer.json")
    return json.loads(fast.to_str())


def kind(data: Mapping[str, Any]) -> Kind:
    """How a tokenizer works.

    Args:
        data: of tokenizer.json.

    Raises:
        UserError: a property that llama.cpp cannot express.
    """
    model = data["model"]
    if model.get("type") != "BPE":
        raise _refused(f"is {model.get('type')}, and only BPE is written here")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refused(f"has {name} {model[name]!r:.40}")
    for token in data.get("added_tokens", ()):
        for name in ("lstrip", "rstrip", "single_word"):
            if token.get(name):
                raise _refused(f"has the token {token['content']!r:.40} with {name}")
    steps = _parts(data.get("pre_tokenizer"), "pretokenizers")
    normal = _parts(data.get("normalizer"), "normalizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        return _bytes(model, steps, normal)
    return _pieces(model, steps, normal)


def keys(
    tokenizer: Any, size: int, template: str, stop: Collection[int], prefixed: bool
) -> dict[str, Any]:
    """GGUF's keys of a tokenizer -> values.

    Args:
        size: rows of the model's embedding; ids without a token are filled up, tokens behind them
            are left out.
        stop: ids that end an answer.
        prefixed: whether llama.cpp should put a space in front of every piece of text between
            special tokens (SentencePiece's vocabularies only).

    Raises:
        UserError: a property that llama.cpp cannot express.
    """
    data = backend(tokenizer)
    sort, model = kind(data), data["model"]
    texts: list[str | None] = [None] * size
    kinds = [UNUSED] * size
    for text, number in model["vocab"].items():
        if number < size:
            texts[number] = text
            kinds[number] = BYTE if sort.model == "llama" and text in BYTES else NORMAL
    for token in data.get("added_tokens", ()):
        if token["id"] < size:
            texts[token["id"]] = token["content"]
            kinds[token["id"]] = CONTROL if token["special"] else USER
    unknown = model["vocab"].get(model.get("unk_token"), size)
    if sort.model == "llama" and unknown < size:
        kinds[unknown] = UNKNOWN
    found: dict[str, Any] = {
        "model": sort.model,
        "pre": sort.pre,
        "tokens": _filled(texts),
        "token_type": kinds,
    }
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if sort.model == "llama":
        # llama.cpp merges the two neighbours whose piece has the highest score: a piece's score is
        # the place of the first merge that makes it
        scores = [-1e6 - len(pairs)] * size
        for place, (left, right) in enumerate(pairs):
            number = model["vocab"].get(left + right, size)
            if number < size:
                scores[number] = max(scores[number], float(-place))
        found |= {"scores": scores, "add_space_prefix": prefixed, "remove_extra_whitespaces": False}
    else:
        if any(" " in part for pair in pairs for part in pair):
            raise _refused("has merges of pieces that hold a space")
        # llama.cpp wants at least one: these characters stand for no byte, so they never meet
        found["merges"] = [f"{left} {right}" for left, right in pairs or [(SPACE, SPACE)]]
    return {
        f"tokenizer.{'chat_template' if name == 'chat_template' else f'ggml.{name}'}": value
        for name, value in (found | _special(tokenizer, size, stop, template)).items()
    }


def left_out(tokenizer: Any, size: int) -> list[str]:
    """Tokens behind the last row of the embedding, which no model can read."""
    return sorted(text for text, number in tokenizer.get_vocab().items() if number >= size)


def write(writer: Any, found: Mapping[str, Any]) -> None:
    """Give keys to a GGUFWriter."""
    for name, value in found.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)


def _bytes(model: Mapping[str, Any], steps: list[dict], normal: list[dict]) -> Kind:
    """Bytes and merges, as in GPT-2: the cut must be one that llama.cpp has a name for."""
    for step in normal:
        if step["type"] != "NFC":
            raise _refused(f"normalises texts ({step['type']})")
    last = steps[-1]
    if last["type"] != "ByteLevel":
        raise _refused(f"cuts texts in a way that llama.cpp has no name for ({last['type']})")
    cut = " ".join([*map(_cut, steps[:-1]), *(["gpt2"] if last.get("use_regex", True) else [])])
    if cut == _TEKKEN:
        raise _refused(
            "cuts words before capitals, accents included (tekken, as in Mistral Nemo), of which "
            "llama.cpp knows those of ASCII only"
        )
    ignoring = bool(model.get("ignore_merges"))
    name = CUTS.get((cut, ignoring)) or CUTS.get((cut, not ignoring))  # often it is all the same
    if name is None:
        raise _refused(f"cuts texts in a way that llama.cpp has no name for ({cut or 'no cut'!r})")
    missing = 256 - len(_alphabet() & model["vocab"].keys())
    if missing:
        raise _refused(f"has no token for {missing} of the 256 bytes")
    prefix = "ByteLevel, add_prefix_space" if last.get("add_prefix_space") else ""
    return Kind("gpt2", name, prefix, bool(normal))


def _cut(step: Mapping[str, Any]) -> str:
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        return step["pattern"].get("Regex", str(step["pattern"]))
    return step["type"]


def _pieces(model: Mapping[str, Any], steps: list[dict], normal: list[dict]) -> Kind:
    """SentencePiece's pieces: spaces are ▁, unknown characters are bytes."""
    if not model.get("byte_fallback"):
        raise _refused("has neither byte-level tokens nor byte fallback (byte_fallback false)")
    if missing := 256 - len(set(BYTES) & model["vocab"].keys()):
        raise _refused(f"has byte fallback without tokens for {missing} of the 256 bytes")
    prefix, spaced = "", False
    for step in normal:
        if step["type"] == "Prepend" and step["prepend"] == SPACE and not spaced:
            prefix = "Prepend"
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            if step["content"] != SPACE:
                raise _refused(f"writes spaces as {step['content']!r:.20}")
            spaced = True
        else:
            raise _refused(f"normalises texts ({step['type']})")
    for step in steps:
        if step["type"] == "Metaspace" and step.get("replacement", SPACE) == SPACE:
            scheme = step.get("prepend_scheme", "always")
            prefix = prefix if scheme == "never" else f"Metaspace, prepend_scheme {scheme}"
            spaced = True
        elif not (step["type"] == "Split" and step["pattern"] == {"String": " "} and spaced):
            raise _refused(f"cuts texts in a way that llama.cpp cannot ({step['type']})")
    if not spaced:
        raise _refused("leaves spaces as they are, where llama.cpp writes ▁")
    return Kind("llama", "default", prefix)


def _special(tokenizer: Any, size: int, stop: Collection[int], template: str) -> dict[str, Any]:
    """Ids with a meaning. All are said: where a key is missing, llama.cpp has ids of its own."""
    front, behind = _around(tokenizer)
    ends = sorted(token for token in stop if token < size)
    if not ends:
        raise _refused("has no token that ends an answer (eos_token)")
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    bos = tokenizer.bos_token_id
    bos = eos if bos is None or bos >= size else bos  # without one, llama.cpp takes id 1 or 11
    if front not in ([], [bos]) or behind not in ([], [eos]):
        raise _refused("puts more around a text than BOS and EOS")
    found: dict[str, Any] = {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "add_bos_token": bool(front),
        "add_eos_token": bool(behind),
    }
    others = [token for token in ends if token != eos]
    found |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    for name in ("unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < size:
            key = "unknown" if name == "unk" else "padding"
            found[f"{key}_token_id"] = number
    return found | {"chat_template": template}


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer puts before and behind a text."""
    whole, bare = (list(tokenizer("x", add_special_tokens=on)["input_ids"]) for on in (True, False))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise _refused("changes a text where it adds special tokens")


def _filled(texts: list[str | None]) -> list[str]:
    """A text for every id, each another: llama.cpp does not load a file that has one twice."""
    taken: dict[str, int] = {}
    for number, text in enumerate(texts):
        if text is not None and taken.setdefault(text, number) != number:
            raise _refused(f"has the token {text!r:.40} twice")
        if text == "":
            raise _refused("has an empty token")
    found = []
    for number, text in enumerate(texts):
        while text is None or (text in taken and taken[text] != number):
            text = f"[PAD{number}]" if text is None else text + "_"
        found.append(text)
    return found


def _parts(step: Mapping[str, Any] | None, name: str) -> list[dict]:
    """The steps of a sequence, or the one there is, or none."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [dict(step)]
    return [part for inner in step[name] for part in _parts(inner, name)]


def _alphabet() -> set[str]:
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def _refused(why: str) -> UserError:
    return UserError(
        f"the tokenizer {why}; a GGUF file cannot say that. Export format model instead."
    )
