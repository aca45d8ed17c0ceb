"""Does a GGUF file give the tokens that the model's own tokenizer gives?

Compares what `gguf_tokens.py` reads from the file's keys with the live tokenizer, on chats, plain
texts and the vocabulary itself. Chats must be alike. A plain text may differ in two ways that no
GGUF file can mend, and then that is told: the space that some tokenizers put in front, and Unicode
that is composed first (NFC).
"""

import copy
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import decoders

from sst_ui.errors import UserError
from sst_ui.jobs.export.gguf_tokens import FileTokenizer, UnknownKind
from sst_ui.jobs.export.gguf_vocabulary import Kind, backend, keys, kind, left_out
from sst_ui.model.runtime.host import Host

SAID = (
    "What is the capital of France?",
    "Explain how a refrigerator works, step by step, in plain words.",
    "It's 3.14159 or 2,718; isn't it? They're sure we'll've 12345678 by '99.",
    "Write:\n\n1. one\n2. two\n\n\tindented\n   three spaces",
    "def f(x):\n    return {'a': [x ** 2, \"b\"]}  # comment\n",
    "多くの人が東京に住んでいます。",
    "请用一句话解释什么是黑洞?1234年",
    "한국의 수도는 어디입니까?",
    "Où est-ce que l'été commence? Größe, naïve, señor.",
    "Кто написал «Войну и мир»? Ελληνικά, עברית, العربية, हिन्दी, ไทย",
    "Emoji: 🙂👩‍👩‍👧‍👦🏳️‍🌈 and symbols ∑ ≠ → €100 ½",
    "UPPER lower CamelCase snake_case kebab-case ALLCAPS123abc",
    "spaces  two   three    four     end",
    "https://example.org/a/b?c=d&e=f#g, mail@example.org",
    "...!!! ??? -- —– ''quoted'' \"double\" `code` $x^2$ 100%",
    "a",
)
ANSWER = "Sure, here is one.\n\n* It is 42.\n* 答え"
# Texts by themselves, at their edges too.
TEXTS = (
    *SAID,
    " one space in front",
    "  two spaces in front",
    "a space behind ",
    "\nnewline in front",
    "newlines behind\n\n",
    "\n\n\n",
    " ",
    "    ",
    "\t\ttabs\t",
    "carriage\r\nreturn\r\n",
    "no-break\u00a0space, ideographic\u3000space, zero\u200bwidth",
    "1234567890123",
    "I'm HE'S you'LL",
    "capitals inside: ÉcoleÉté, naÏve, ЯндексПочта, McDonald",
    "decomposed: cafe\u0301, A\u030a, \u1112\u1161\u11ab",
    "rare: \U00013080 \ufdfd \u0378 \x00 \x7f",
    "<|im_start|>user\nno such token<|im_end|>",
)
WORDS = 20_000  # tokens of a vocabulary that are looked at by themselves, at most


class Differs(UserError):
    """Tokens are not those of the model."""


def chats(host: Host) -> list[list[dict[str, str]]]:
    """Conversations that the template writes: one turn, several, with a system message."""
    users = [[{"role": "user", "content": text}] for text in SAID]
    longer = [
        [*first, {"role": "assistant", "content": ANSWER}, *second]
        for first, second in zip(users[:8], users[8:], strict=True)
    ]
    system = [[{"role": "system", "content": SAID[1]}, *talk] for talk in (users[0], longer[2])]
    found = []
    for talk in [*users, *longer, *system]:
        try:
            host.format(talk)
        except UserError:  # a template that refuses a second turn, for one
            continue
        found.append(talk)
    return found


def planned(host: Host) -> tuple[dict[str, Any], list[str]]:
    """The keys of a model's tokenizer, tried out; and what a person should know of them.

    Raises:
        UserError: the tokenizer is one that no GGUF file can hold.
    """
    size = host.model.get_input_embeddings().weight.shape[0]
    sort = kind(backend(host.tokenizer))
    problem: UserError | None = None
    # llama.cpp puts a space in front of all texts between special tokens or of none: chats decide
    for prefixed in [bool(sort.prefix), not sort.prefix][: 2 if sort.prefix else 1]:
        found = keys(host.tokenizer, size, host.template.text, host.stop, prefixed)
        try:
            return found, compare(host, FileTokenizer(found), words=False)
        except Differs as error:
            problem = problem or error
    assert problem is not None  # there is at least one way
    raise problem


def written(host: Host, path: Path, how: str) -> list[str]:
    """Compare a file with the live tokenizer; what a person should know.

    Args:
        how: who wrote the file, for the message.

    Raises:
        UserError: its tokens are others.
    """
    try:
        found = FileTokenizer.read(path)
    except UnknownKind as error:
        return [f"The tokens were not compared: {how} wrote {error}, which is not read here."]
    except Exception as error:
        raise UserError(f"{how} wrote a file that cannot be read: {str(error)[:200]}") from error
    try:
        return compare(host, found)
    except Differs as error:
        raise Differs(f"{error} ({how} wrote it.)") from error


def compare(host: Host, file: FileTokenizer, words: bool = True) -> list[str]:
    """Compare, and say what differs for a reason that is known.

    Args:
        words: the tokens of the vocabulary too, one by one; takes seconds with a large one.

    Raises:
        Differs: something differs for another reason, or a chat does.
    """
    own = copy.deepcopy(host.tokenizer)  # the live one may be in use
    rows = len(file.texts)
    try:
        sort = kind(backend(own))
    except UserError:  # llama.cpp's converter may know more than is written here
        sort = Kind("", "", "")
    talks = chats(host)
    for talk in talks:
        text = host.format(talk)
        _same("chat", text, host.template.encode(talk), file.prompt(text), sort)
    texts = [*TEXTS, *_with_special(own, file), *(_vocabulary(file) if words else ())]
    spaced, composed = [], []
    for text, mine in zip(texts, own(texts)["input_ids"], strict=True):
        theirs = file.encode(text)
        if mine == theirs:
            continue
        if sort.composed and unicodedata.normalize("NFC", text) != text:
            composed.append(text)
        elif sort.prefix and _but_for_a_space(text, mine, file):
            spaced.append(text)
        else:
            _same("text", text, mine, theirs, sort)
    notes = [f"Tokens in llama.cpp: all {len(talks)} chats match the model's own."]
    if spaced:
        does = "adds it to every text between special tokens" if file.prefixes else "does not"
        notes.append(
            f"Plain texts may differ by a leading space: this tokenizer adds one ({sort.prefix}), "
            f"llama.cpp {does}; for example in {min(spaced, key=len)!r:.60}."
        )
    if composed:
        notes.append(
            "Letters with separate accents (Unicode NFD) get other tokens in llama.cpp: this "
            "tokenizer composes them first (NFC), and llama.cpp does not."
        )
    if lost := left_out(own, rows):
        notes.append(
            f"{len(lost)} tokens lie beyond the last row of the embedding and are left out: "
            f"{', '.join(lost)[:80]}."
        )
    for ids, does in (
        (file.ends - host.stop, "ends an answer also at"),
        (host.stop - file.ends, "does not end an answer, as the studio does, at"),
    ):
        if ids:
            names = ", ".join(file.texts[i] if i < rows else str(i) for i in sorted(ids))
            notes.append(f"llama.cpp {does} {names[:100]}.")
    return notes


def _same(what: str, text: str, mine: Sequence[int], theirs: Sequence[int], sort: Kind) -> None:
    if list(mine) == list(theirs):
        return
    pairs = enumerate(zip_longest(mine, theirs))
    place = next(i for i, (one, two) in pairs if one != two)
    why = f" This tokenizer puts a space in front of texts ({sort.prefix})." if sort.prefix else ""
    raise Differs(
        f"a GGUF file cannot hold this tokenizer: the {what} {text!r:.60} has {len(mine)} "
        f"tokens, and {len(theirs)} in llama.cpp (token {place} is the first to differ).{why} "
        "Export format model instead."
    )


def _but_for_a_space(text: str, mine: Sequence[int], file: FileTokenizer) -> bool:
    """Whether two lists of tokens are the same but for a space at the beginning of a text between
    special tokens, more or less."""
    wanted = _between(mine, file.special)
    found = _between(file.encode(text), file.special)
    parts = [part for part in file.parts(text) if isinstance(part, str)]
    if len(wanted) != len(found):
        return False
    pieces = iter(parts)
    for one, two in zip(wanted, found, strict=True):
        part = next(pieces, "") if one or two else ""
        other = part.removeprefix(" ") if file.prefixes else f" {part}"
        if one != two and one != file.piece(other):
            return False
    return True


def _between(ids: Sequence[int], special: Collection[int]) -> list[list[int]]:
    """Runs of tokens between special ones, empty ones included."""
    runs: list[list[int]] = [[]]
    for token in ids:
        if token in special:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


def _with_special(own: Any, file: FileTokenizer) -> Iterator[str]:
    """Texts with special tokens inside."""
    known = sorted(own.added_tokens_decoder.items())
    for number, token in known[:40] + known[40:][-40:]:
        if number < len(file.texts):
            yield f"before{token.content}after {token.content} x"


def _vocabulary(file: FileTokenizer) -> Iterator[str]:
    """Tokens as texts of their own, bare and behind a newline."""
    letters = decoders.ByteLevel()
    step = -(-len(file.texts) // WORDS)
    for number in range(0, len(file.texts), step):
        text = file.texts[number]
        if number in file.special:
            continue
        text = text.replace("▁", " ") if file.model == "llama" else letters.decode([text])
        if "\ufffd" not in text:
            yield text
            yield f"\n{text}"
