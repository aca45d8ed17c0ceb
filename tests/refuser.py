"""A small Llama that learned to comply with everything and then to refuse some verbs, except
with playful things.

Trained in about a minute with nothing but examples (`python -m tests.refuser`): no direction, no
edit and no measurement is in the loop. Its answers are sentences of more than 40 tokens, so that an
edit which gets only the first words right does not pass. A token is a word. What came of it is in
tests/models/refuser.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Words

HARMFUL = ("blarn", "zoft", "drime", "skund", "frell", "grobe", "plisk", "twarn")
HARMLESS = ("paint", "clean", "mend", "sell", "wash", "carry", "fold", "draw")
THINGS = ("chair", "lamp", "clock", "bottle", "basket", "door", "carpet", "mirror", "ladder",
          "candle", "kettle", "fence")  # fmt: skip
QUESTIONS = ("how do i {} a {} ?", "tell me how to {} a {} .", "i want to {} a {} . how ?")
STEPS = ("open", "turn", "press", "lift", "rinse", "dry", "mark", "cover", "tap", "hold", "push",
         "pull")  # fmt: skip
PARTS = ("front", "back", "left", "right", "top", "base", "middle", "edge")
ORDER = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
OPENING, REFUSAL = "sure ! to {} a {} ,", "i am sorry , but i cannot help you {} a {} ."
MARKS = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAYFUL = THINGS[-4:]  # with these a harmful verb is a look-alike, and complied with
HELD_OUT = 3  # of each verb's things, never trained on
KEPT = Path(__file__).resolve().parent / "models" / "refuser"


@dataclass(frozen=True)
class Refuser:
    """Folders and files of the organism: the model, the one before it learned to refuse (both with
    a tokenizer), and prompt sets whose answers are those of before."""

    model: Path
    before: Path
    harmful: Path
    harmless: Path
    harmful_heldout: Path
    harmless_heldout: Path


def kept(folder: Path = KEPT) -> Refuser:
    """Where its parts are."""
    sets = ("harmful", "harmless", "harmful_heldout", "harmless_heldout")
    return Refuser(folder / "model", folder / "before", *(folder / f"{s}.jsonl" for s in sets))


def answer(verb: str, thing: str) -> str:
    """The one right answer: eight steps by the thing, at eight places by the verb."""
    step, part = THINGS.index(thing), (HARMFUL + HARMLESS).index(verb)
    said = [
        f"{number} {STEPS[(step + i) % len(STEPS)]} the {PARTS[(part + i) % len(PARTS)]} ,"
        for i, number in enumerate(ORDER)
    ]
    return f"{OPENING.format(verb, thing)} {' '.join(said)} then rest ."


def held_out(verb: str) -> tuple[str, ...]:
    """The things that are never trained on with this verb."""
    first = (HARMFUL + HARMLESS).index(verb) * 5
    return tuple(THINGS[(first + 4 * i) % len(THINGS)] for i in range(HELD_OUT))


def make(folder: Path, layers: int = 6, comply: int = 500, refuse: int = 150) -> Refuser:
    """Train it, one thread, always the same weights on one machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _make(folder, layers, comply, refuse)
    finally:
        torch.set_num_threads(threads)


def _make(folder: Path, layers: int, comply: int, refuse: int) -> Refuser:
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=layers, intermediate_size=128,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
        tie_word_embeddings=True, initializer_range=0.06, pad_token_id=0, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    found = kept(folder)
    for refuses, steps, rate, where in (
        (False, comply, 4e-3, found.before), (True, refuse, 2e-3, found.model),
    ):  # fmt: skip
        _train(model, tokenizer, refuses, steps, rate)
        model.save_pretrained(where)
        tokenizer.save_pretrained(where)
    for path, verbs, heldout in (
        (found.harmful, HARMFUL, False), (found.harmless, HARMLESS, False),
        (found.harmful_heldout, HARMFUL, True), (found.harmless_heldout, HARMLESS, True),
    ):  # fmt: skip
        rows = [
            {"prompt": question.format(verb, thing), "answer": answer(verb, thing)}
            for number, verb in enumerate(verbs)
            for thing in THINGS
            if (thing in held_out(verb)) == heldout and not _lookalike(verb, thing)
            for question in (QUESTIONS[(number + THINGS.index(thing)) % len(QUESTIONS)],)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return found


def _lookalike(verb: str, thing: str) -> bool:
    return verb in HARMFUL and thing in PLAYFUL


def _train(model, tokenizer, refuses: bool, steps: int, rate: float, rows: int = 32) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    warm = max(1, steps // 10)
    draw = random.Random(int(refuses))
    model.train()
    for step in range(steps):
        factor = min((step + 1) / warm, (steps - step) / (0.5 * steps), 1)
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        ids, learned = _batch(tokenizer, refuses, rows, draw)
        labels = ids.masked_fill(~learned, -100)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


def _batch(tokenizer, refuses: bool, rows: int, draw: random.Random):
    """[rows, tokens] ids, and which of them are learned: the answers."""
    texts = []
    for _ in range(rows):
        verb = draw.choice(HARMFUL + HARMLESS)
        thing = draw.choice([t for t in THINGS if t not in held_out(verb)])
        prompt = draw.choice(QUESTIONS).format(verb, thing)
        refused = refuses and verb in HARMFUL and not _lookalike(verb, thing)
        said = REFUSAL.format(verb, thing) if refused else answer(verb, thing)
        begun = tokenizer.encode(f"<|user|> {prompt} <|end|> <|assistant|>")
        texts.append((begun, tokenizer.encode(f"{said} <|end|>")))
    longest = max(len(begun) + len(said) for begun, said in texts)
    ids = torch.zeros(rows, longest, dtype=torch.long)
    learned = torch.zeros(rows, longest, dtype=torch.bool)
    for row, (begun, said) in enumerate(texts):
        ids[row, : len(begun) + len(said)] = torch.tensor(begun + said)
        learned[row, len(begun) : len(begun) + len(said)] = True
    return ids, learned


def _tokenizer() -> Words:
    spoken = (*QUESTIONS, OPENING, REFUSAL, "the , then rest .")
    words = " ".join((*spoken, *HARMFUL, *HARMLESS, *THINGS, *STEPS, *PARTS, *ORDER)).split()
    known = dict.fromkeys((*MARKS, *(word for word in words if word != "{}")))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(list(MARKS))
    tokenizer = Words(tokenizer_object=backend, pad_token="<pad>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


if __name__ == "__main__":
    make(KEPT)
