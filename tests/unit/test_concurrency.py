"""Many at one model: nobody sees another's edit, nobody waits for more than one step."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from sst_ui.jobs.chat import chat
from sst_ui.maths.directions import random
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.inference import generate as module
from sst_ui.model.inference.generate import generate, logprobs
from sst_ui.model.runtime.fair_lock import Turns
from sst_ui.progress import finish
from sst_ui.recipe import KINDS
from tests.talk import answers, tiny_host

QUESTIONS = ("Hi", "A longer question, is it not?", "こんにちは")
STEPS = 20


@pytest.fixture(scope="module")
def small():
    host = tiny_host()
    host.stop = frozenset()
    return host


def edit(host, seed: int, alpha: float) -> tuple[RowEdit, ...]:
    """A row that removes (or adds to) a random direction in every layer."""
    directions = random(host.layers, host.hidden, 1, seed)
    return (RowEdit(directions, np.full((host.layers, len(KINDS)), alpha)),)


def together(*jobs) -> list:
    """Run jobs at the same time, each in a thread; their results, or the first error."""
    results, errors = [None] * len(jobs), []
    start = threading.Barrier(len(jobs))

    def run(i, job):
        try:
            start.wait()
            results[i] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a job hangs"
    if errors:
        raise errors[0]
    return results


@pytest.fixture
def turns(monkeypatch):
    """Which thread took each forward pass."""
    taken = []
    real = module.forward

    def forward(*args, **settings):
        result = real(*args, **settings)
        taken.append(threading.get_ident())
        return result

    monkeypatch.setattr(module, "forward", forward)
    return taken


def test_interleaved_generations_equal_those_alone(small, turns):
    prompts = [small.encode(text) for text in QUESTIONS]
    sessions = [
        [(), edit(small, 1, 1.0), edit(small, 2, 1.5)],
        [edit(small, 3, 1.0), (), edit(small, 3, -1.0)],
        [()] * 3,
    ]
    jobs = [lambda rows=rows: list(generate(small, prompts, rows, STEPS)) for rows in sessions]
    alone = [job() for job in jobs]
    assert alone[0] != alone[2] != alone[1] != alone[0]  # the edits do something
    turns.clear()
    assert together(*jobs) == alone
    changes = sum(a != b for a, b in pairwise(turns))
    assert changes > STEPS  # they really took turns, token by token


def test_chat_metrics_and_a_capture_of_logits_share_the_model(small):
    prompts = [small.encode(text) for text in QUESTIONS]
    row = edit(small, 1, 1.0)
    histories = [[{"role": "user", "content": text}] for text in QUESTIONS]
    jobs = (
        lambda: list(chat(small, [(), row, ()], histories, STEPS))[-1],
        lambda: finish(answers(small, prompts, [row] * 3, STEPS, batch=2)),
        lambda: logprobs(small, prompts * 4, [row, (), ()] * 4).tolist(),
    )
    alone = [job() for job in jobs]
    assert together(*jobs) == alone


def test_sampling_is_not_disturbed_by_others_who_sample(small):
    prompts = [small.encode(text) for text in QUESTIONS]
    jobs = [
        lambda seed=seed: list(generate(small, prompts, None, STEPS, temperature=1.3, seed=seed))
        for seed in (1, 2, 3)
    ]
    alone = [job() for job in jobs]
    assert together(*jobs) == alone


def test_an_abandoned_generator_blocks_nobody_and_leaves_no_edit(small):
    prompt = small.encode("Hi")
    before = logprobs(small, [prompt])
    left = generate(small, [prompt], [edit(small, 1, 2.0)], STEPS)
    next(left)  # stands between two steps, neither finished nor closed
    (after,) = together(lambda: logprobs(small, [prompt]))
    assert torch.equal(after, before)
    rest = list(left)  # and may go on later
    alone = list(generate(small, [prompt], [edit(small, 1, 2.0)], STEPS))
    assert rest == alone[1:]


def test_a_generator_closed_in_the_middle_leaves_no_edit(small):
    prompt = small.encode("Hi")
    before = logprobs(small, [prompt])
    left = chat(small, [edit(small, 1, 2.0)], [[{"role": "user", "content": "Hi"}]], STEPS)
    next(left)
    left.close()
    assert torch.equal(logprobs(small, [prompt]), before)


def test_a_step_that_fails_frees_the_model_and_takes_its_edit_along(small):
    prompt = small.encode("Hi")
    before = logprobs(small, [prompt])
    plan = small.live.compile([edit(small, 1, 2.0)])
    with pytest.raises(RuntimeError, match="a kernel failed"), small.step(plan):
        raise RuntimeError("a kernel failed")
    (after,) = together(lambda: logprobs(small, [prompt]))
    assert torch.equal(after, before)


def test_changing_the_edit_touches_no_weight(small):
    weights = {name: p.clone() for name, p in small.model.named_parameters()}
    for strength in (-1.0, 0.5, 2.0):
        logprobs(small, [small.encode("Hi")], [edit(small, 1, strength)])
    for name, weight in small.model.named_parameters():
        assert torch.equal(weight, weights[name])


def test_turns_are_served_in_the_order_of_asking():
    turns, order, threads = Turns(), [], []

    def take(i):
        with turns:
            order.append(i)

    with turns:
        for i in range(8):
            threads.append(threading.Thread(target=take, args=(i,)))
            threads[-1].start()
            while len(turns._waiting) < i + 1:  # asked, before the next one asks
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))


def test_a_greedy_job_gets_no_more_turns_than_others():
    turns, counts = Turns(), [0, 0]
    end = time.monotonic() + 0.3

    def work(i, pause):
        while time.monotonic() < end:
            with turns:
                counts[i] += 1
                time.sleep(0.002)
            time.sleep(pause)

    together(lambda: work(0, 0.0), lambda: work(1, 0.0005))
    assert min(counts) > 0.3 * max(counts)
