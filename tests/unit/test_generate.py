"""Our own decoding loop against transformers' `generate`, one prompt at a time, in float32."""

from itertools import pairwise

import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.model.inference import generate as module
from sst_ui.model.inference import logprobs as score
from sst_ui.model.inference import running_batch
from sst_ui.model.inference.generate import Text, generate, logprobs, pick, teacher_forced, written
from sst_ui.model.inference.replies import replies
from sst_ui.progress import Progress, finish
from tests.talk import answers, byte_tokenizer, every_pass, tiny_host

WINDOW = {"sliding_window": 8}  # shorter than the prompts, so that it matters
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": WINDOW,
    "gemma2": WINDOW,
    "gemma3": WINDOW,
    "gpt2": {},
    "gpt_neox": {},
    "mixtral": {},
    "gpt_oss": WINDOW,
}
PROMPTS = ("Hi", "A much longer question, is it not?", "こんにちは", "x" * 30)
STEPS = 24


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    """A host, prompts of different length, and transformers' greedy continuation of each alone."""
    host = tiny_host(request.param, **FAMILIES[request.param])
    host.stop = frozenset()
    prompts = [host.encode(text) for text in PROMPTS]
    alone = [reference(host, prompt, STEPS) for prompt in prompts]
    return host, prompts, alone


def reference(host, prompt, steps) -> list[int]:
    """Greedy tokens by transformers itself: no batch, no padding, no end."""
    host.model.generation_config.eos_token_id = None
    output = host.model.generate(
        torch.tensor([prompt]), max_new_tokens=steps, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def collect(steps, rows) -> list[list[int]]:
    tokens = [[] for _ in range(rows)]
    for column in steps:
        for row, token in column.items():
            tokens[row].append(token)
    return tokens


def test_a_padded_batch_writes_what_each_prompt_writes_alone(case):
    host, prompts, alone = case
    assert collect(generate(host, prompts, None, STEPS), len(prompts)) == alone


def test_rows_that_end_leave_the_others_as_they_were(case, monkeypatch):
    """Each step's logits, while rows leave one by one, against the model reading a row alone."""
    host, prompts, _ = case
    stop, lengths = 2, (5, 1, STEPS, 9)
    noise = torch.Generator().manual_seed(0)
    script = [[*torch.randint(5, 250, (n,), generator=noise).tolist(), stop] for n in lengths]
    seen = [[] for _ in prompts]

    def follow(logits, temperature, top_p, dice):
        rows = [die.initial_seed() for die in dice]  # the seeds below are the rows' numbers
        for row, values in zip(rows, logits, strict=True):
            seen[row].append(values)
        return [script[row][len(seen[row]) - 1] for row in rows]

    monkeypatch.setattr(module, "pick", follow)
    monkeypatch.setattr(host, "stop", frozenset({stop}))
    found = collect(generate(host, prompts, None, STEPS + 1, seed=range(4)), len(prompts))
    assert found == [tokens[:-1] for tokens in script]
    for prompt, tokens, values in zip(prompts, script, seen, strict=True):
        with torch.no_grad():
            logits = host.model(torch.tensor([prompt + tokens[:-1]])).logits[0]
        expected = logits[len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(values), expected, atol=2e-4, rtol=1e-4)


def test_teacher_forcing_gives_back_the_distributions_of_the_model(case):
    host, prompts, alone = case
    continuations = [tokens[: 3 + 5 * i] for i, tokens in enumerate(alone)]
    found = teacher_forced(host, prompts, continuations)
    for prompt, continuation, logs in zip(prompts, continuations, found, strict=True):
        with torch.no_grad():
            logits = host.model(torch.tensor([prompt + continuation])).logits[0]
        expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(logs, expected, atol=2e-4, rtol=1e-4)
        assert logs.argmax(-1).tolist() == continuation  # greedy continuations


def test_next_token_log_probabilities_do_not_depend_on_the_batch(case):
    host, prompts, alone = case
    found = logprobs(host, prompts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(prompts)))
    assert found.argmax(-1).tolist() == [tokens[0] for tokens in alone]
    for prompt, row in zip(prompts, found, strict=True):
        torch.testing.assert_close(row, logprobs(host, [prompt])[0], atol=2e-4, rtol=1e-4)


def test_answers_come_back_in_the_order_of_the_questions(case):
    host, prompts, alone = case
    steps = []
    texts = finish(answers(host, prompts, None, STEPS, batch=2), steps.append)
    assert texts == [host.decode(tokens) for tokens in alone]
    assert all(isinstance(step, Progress) for step in steps)
    assert (steps[-1].done, steps[-1].total) == (len(prompts), len(prompts))


# The loop's manners, on one architecture


@pytest.fixture(scope="module")
def small():
    host = tiny_host()
    host.stop = frozenset()
    return host


def test_the_token_that_ends_an_answer_is_not_part_of_it(small, monkeypatch):
    prompt = small.encode("Hi")
    tokens = reference(small, prompt, 4)
    monkeypatch.setattr(small, "stop", frozenset({tokens[0]}))
    assert list(generate(small, [prompt], None, 4)) == []


def test_generation_ends_with_the_context(small):
    prompt = [7] * (small.context - 3)
    assert len(list(generate(small, [prompt], None, 50))) == 3


@pytest.mark.parametrize("length", [0, 256, 300])
def test_a_prompt_that_leaves_no_room_is_refused(small, length):
    with pytest.raises(UserError, match=f"a prompt has {length} tokens; tiny-llama reads 1 to 255"):
        next(generate(small, [[7] * length], None, 4))


def test_no_prompts_give_no_columns(small):
    assert list(generate(small, [], [], 4)) == []
    assert finish(answers(small, [], [], 4)) == []


def test_closing_the_generator_stops_the_model(small, monkeypatch):
    steps = generate(small, [small.encode("Hi")], None, 50)
    next(steps)
    steps.close()
    assert list(steps) == []


def test_a_row_samples_the_same_whoever_sits_beside_it(small):
    prompts = [small.encode(text) for text in PROMPTS]
    together = collect(generate(small, prompts, None, 12, temperature=1.5, seed=3), 4)
    for prompt, tokens in zip(prompts, together, strict=True):
        assert collect(generate(small, [prompt], None, 12, temperature=1.5, seed=3), 1) == [tokens]
    again = collect(generate(small, prompts, None, 12, temperature=1.5, seed=4), 4)
    assert again != together


def test_a_seed_a_row_gives_several_samples_of_one_prompt(small):
    prompts = [small.encode("Hi")] * 3
    samples = collect(generate(small, prompts, None, 12, temperature=1.5, seed=[1, 2, 1]), 3)
    assert samples[0] == samples[2] != samples[1]


def test_sampling_follows_the_softmax_at_its_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    die = torch.Generator().manual_seed(0)
    draws = torch.tensor([pick(logits, 0.7, 1.0, [die])[0] for _ in range(4000)])
    shares = torch.bincount(draws, minlength=4) / len(draws)
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(-1), atol=0.025, rtol=0)


def test_top_p_draws_from_the_nucleus_only():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    die = torch.Generator().manual_seed(0)
    draws = {pick(logits, 1.0, 0.75, [die])[0] for _ in range(300)}
    assert draws == {0, 1}
    assert {pick(logits, 1.0, 1e-6, [die])[0] for _ in range(20)} == {0}


def test_answers_leave_the_thinking_out(small, monkeypatch):
    script = iter(small.tokens("<think>hm</think>\n\nYes."))
    monkeypatch.setattr(running_batch, "pick", lambda *_: [next(script)])
    asked = answers(small, [small.encode("Hi")], None, len("<think>hm</think>\n\nYes."))
    assert finish(asked) == ["Yes."]


def test_nothing_to_score_is_no_error(small):
    assert logprobs(small, []).shape == (0, small.model.config.vocab_size)
    prompt = small.encode("Hi")
    empty, full = teacher_forced(small, [prompt] * 2, [[], [7, 8]])
    assert (len(empty), len(full)) == (0, 2)
    assert [len(logs) for logs in teacher_forced(small, [prompt], [[]])] == [0]


@pytest.mark.parametrize("joint", [True, False], ids=["with chats", "alone"])
def test_a_batch_that_does_not_fit_the_memory_is_halved(small, monkeypatch, joint):
    monkeypatch.setattr("sst_ui.model.inference.replies.together_with_chats", lambda _: joint)
    sizes = []
    real = module.forward

    def tight(host, batch, *args, **settings):
        sizes.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(host, batch, *args, **settings)

    prompts = [small.encode(text) for text in (*PROMPTS, "One more")]
    expected = finish(answers(small, prompts, None, 6))
    every_pass(monkeypatch, tight)
    heard = []
    assert finish(answers(small, prompts, None, 6), heard.append) == expected
    assert max(sizes) > 2
    said = [step.warning for step in heard if step.warning]
    assert said[-1].endswith("going on with 2 at a time, which takes longer.")
    assert len(said) == len(set(said)), "once for each size"


def test_likelihoods_too_are_halved_where_memory_is_short(small, monkeypatch):
    sizes = []
    real = score.forward

    def tight(host, batch, *args, **settings):
        sizes.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError
        return real(host, batch, *args, **settings)

    prompts = [small.encode(text) for text in (*PROMPTS, "One more")]
    after, along = logprobs(small, prompts), teacher_forced(small, prompts, [[7, 8]] * 5)
    monkeypatch.setattr(score, "forward", tight)
    assert torch.allclose(logprobs(small, prompts), after, atol=1e-5)
    for found, expected in zip(teacher_forced(small, prompts, [[7, 8]] * 5), along, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert max(sizes) > 2


def test_a_prompt_that_does_not_fit_the_memory_alone_is_said_so(small, monkeypatch):
    def full(*args, **settings):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(score, "forward", full)
    with pytest.raises(UserError, match="does not fit the memory; use a shorter one"):
        logprobs(small, [small.encode("Hi")])


def test_a_reply_knows_whether_the_model_ended_it(small, monkeypatch):
    prompt = small.encode("Hi")
    tokens = reference(small, prompt, 4)
    (cut,) = finish(replies(small, [prompt], None, 3))
    assert (cut.tokens, cut.ended) == (tuple(tokens[:3]), False)
    monkeypatch.setattr(small, "stop", frozenset({tokens[2]} - set(tokens[:2])))
    (ended,) = finish(replies(small, [prompt], None, 3))
    assert ended.ended


def test_an_error_of_the_model_passes_through(small, monkeypatch):
    def broken(*args, **settings):
        raise RuntimeError("a kernel failed")

    every_pass(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        finish(answers(small, [small.encode("Hi")], None, 6))


def test_an_edit_that_breaks_the_numbers_is_said_so(small, monkeypatch):
    monkeypatch.setattr(module, "forward", lambda *a, **k: torch.full((1, 1, 9), float("nan")))
    with pytest.raises(UserError, match="computes NaN"):
        next(generate(small, [small.encode("Hi")], None, 6))


# Text


def test_kana_stream_one_by_one_and_never_in_halves():
    host = tiny_host()
    text, shown = Text(host), []
    for token in host.tokens("こんにちは、世界。OK?"):
        text.push(token)
        shown.append(text.text)
        assert "\ufffd" not in text.text
    assert text.text == "こんにちは、世界。OK?"
    assert {"こ", "こん", "こんに"} <= set(shown)  # not held back until the end


def test_a_character_cut_off_by_the_end_is_left_out():
    host = tiny_host()
    text = Text(host)
    for token in host.tokens("こん")[:-1]:
        text.push(token)
    assert text.text == host.decode(host.tokens("こん")[:-1]) == "こ"


def test_spaces_between_words_survive_the_streaming():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # SentencePiece style: a space belongs to the next token and vanishes at the start of a text
    words = ["<s>", "▁Hello", "▁world", "!", "▁again"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    host = tiny_host(tokenizer=tokenizer)
    text = Text(host)
    for token in (1, 2, 3, 4):
        text.push(token)
    assert text.text == "Hello world! again"


def test_special_tokens_do_not_show():
    host = tiny_host()
    text = Text(host)
    for token in (*host.tokens("a"), 1, 3, *host.tokens("b")):
        text.push(token)
    assert text.text == "ab"


def test_streamed_texts_grow_and_end_with_the_answer(small):
    prompts = [small.encode(text) for text in PROMPTS]
    shown = list(written(small, generate(small, prompts, None, 12), len(prompts)))
    for before, after in pairwise(shown):
        assert all(b.startswith(a) for a, b in zip(before, after, strict=True))
    tokens = collect(generate(small, prompts, None, 12), len(prompts))
    final = [small.decode(row) for row in tokens]
    assert [a.startswith(b) for a, b in zip(final, shown[-1], strict=True)] == [True] * 4


def test_a_tokenizer_without_bos_needs_none():
    host = tiny_host(tokenizer=byte_tokenizer())
    assert host.encode("Hi")[0] == host.tokenizer.convert_tokens_to_ids("<|im_start|>")
