"""One batch for all callers: nobody's answer depends on who joins, leaves, waits or fails.

Greedy answers are compared token for token with what `generate` gives each caller alone. Where a
test says when somebody joins, one thread drives several generators in turn.
"""

import gc
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.jobs.chat import chat
from sst_ui.jobs.directions.measure import resolve
from sst_ui.maths import directions
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.hooks import plan_joining
from sst_ui.model.hooks.live_edits import RowDelta, RowEdit
from sst_ui.model.hooks.plan_joining import joined
from sst_ui.model.hooks.row_plan import run
from sst_ui.model.inference import joining
from sst_ui.model.inference import running_batch as module
from sst_ui.model.inference.generate import generate
from sst_ui.model.inference.joining import able
from sst_ui.model.inference.replies import replies, together_with_chats
from sst_ui.model.inference.running_batch import running, together
from sst_ui.model.runtime.host import load
from sst_ui.paths import PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import KINDS, ModelSpec
from sst_ui.recipe import load as load_recipe
from tests.talk import every_pass, tiny_host
from tests.unit.test_concurrency import together as at_once

STEPS = 14
WINDOW = {"sliding_window": 8}  # shorter than prompts and answers, so that it matters
JOIN = {"llama": {}, "gpt2": {}, "mistral": WINDOW, "gemma2": WINDOW, "mixtral": {}, "bloom": {}}
ALONE = ("minimax", "openai_gpt")  # linear attention; no cache


def host_of(name: str, **overrides):
    host = tiny_host(name, **overrides)
    host.stop = frozenset()
    return host


@pytest.fixture(scope="module")
def small():
    return host_of("llama")


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 250, (n,), generator=draw).tolist() for n in lengths]


def edit(host, seed: int, alpha: float = 1.0, k: int = 1, **options) -> tuple[RowEdit, ...]:
    cells = np.full((host.layers, len(KINDS)), alpha)
    return (RowEdit(directions.random(host.layers, host.hidden, k, seed), cells, **options),)


def delta(host, seed: int, kind: str = "mlp") -> tuple[RowDelta, ...]:
    """Low-rank deltas of two modules, one of them with a bias."""
    draw = torch.Generator().manual_seed(seed)
    paths = [w.name for w in host.architecture.writers if w.role == kind and w.form != "experts"]
    found = {}
    for number, path in enumerate(paths[:2]):
        weight = host.model.get_submodule(path).weight
        out, inp = reversed(weight.shape) if "gpt2" in host.name else weight.shape
        b, a = torch.randn(out, 2, generator=draw), torch.randn(2, inp, generator=draw)
        found[path] = Delta(0.3 * b, a, torch.randn(out, generator=draw) if number else None)
    return (RowDelta(found),)


def callers(host) -> list[tuple[list[list[int]], list[tuple]]]:
    """Prompts and rows of six callers; they end at different lengths, and most have two columns."""
    kind = "attention" if "attention" in KINDS else KINDS[0]
    shared = directions.random(host.layers, host.hidden, 2, 9)
    strengths = [np.full((host.layers, len(KINDS)), alpha) for alpha in (0.6, 1.4)]
    norms = np.full((host.layers, len(KINDS)), 1.0)
    if host.name.endswith("mixtral"):
        norms[:, KINDS.index("mlp")] = 0  # experts keep no norms in the live model
    norm = (RowEdit(directions.random(host.layers, host.hidden, 1, 4), norms, True),)
    one, two, three, four, five, six = texts(11, 5, 17, 4, 9, 13)
    return [
        ([one, one], [(), (RowEdit(shared, strengths[0]),)]),
        ([two, two], [(), (RowEdit(shared, strengths[1]),)]),  # the same directions
        ([three, four], [norm, edit(host, 5, 0.7, affine=True)]),
        ([four, four], [(), delta(host, 6, kind)]),
        ([five], [(*delta(host, 7, kind), *edit(host, 8, 1.5), *edit(host, 3, 0.5))]),
        ([six, one], [(), edit(host, 2, 0.8, 2, operation="add")]),
    ]


def alone(host, prompts, rows, steps=STEPS, **settings) -> list[dict[int, int]]:
    return list(generate(host, prompts, rows, steps, **settings))


def in_turn(jobs: list, starts: list[int]) -> list[list]:
    """What generators yield that one thread drives in turn, each from its round on."""
    found, running_now = [[] for _ in jobs], set(range(len(jobs)))
    turn = 0
    while running_now:
        for number in sorted(running_now):
            if turn >= starts[number]:
                column = next(jobs[number], None)
                if column is None:
                    running_now.discard(number)
                else:
                    found[number].append(column)
        turn += 1
    return found


def begun_at_once(host, *jobs) -> list:
    """Run jobs in threads; they come while another leads, so that one pass begins all of them."""
    batch = running(host)

    def open_the_door():
        end = time.monotonic() + 60
        while len(batch._waiting) < len(jobs) and time.monotonic() < end:
            time.sleep(0.001)
        batch._lead.release()
        batch._wake()

    batch._lead.acquire()
    return at_once(open_the_door, *jobs)[1:]


def empty(host) -> bool:
    batch = running(host)
    return (batch.size, batch._block, batch._plan, batch._rows) == (0, None, None, []) and not (
        batch._guests or batch._waiting or batch._seated or batch._leaving
    )


@pytest.fixture
def passes(monkeypatch):
    """How many rows each pass computed that gave one token to every row."""
    seen = []
    real = joining.Block.logits

    def logits(block, host, plan):
        seen.append(len(block.lengths))
        return real(block, host, plan)

    monkeypatch.setattr(joining.Block, "logits", logits)
    return seen


@pytest.mark.parametrize("name", JOIN)
def test_who_joins_midway_answers_as_alone(name, passes):
    host = host_of(name, **JOIN[name])
    asked = callers(host)
    expected = [alone(host, *one, STEPS - n) for n, one in enumerate(asked)]
    assert len({str(one) for one in expected}) == len(asked)
    assert able(host)
    passes.clear()
    jobs = [together(host, *one, STEPS - n) for n, one in enumerate(asked)]
    assert in_turn(jobs, [0, 2, 2, 3, 5, 8]) == expected
    assert max(passes) >= 9  # they really were in one batch
    assert len(passes) < sum(map(len, expected)) / 2
    assert empty(host)


@pytest.mark.parametrize("name", ALONE)
def test_a_model_whose_rows_cannot_join_answers_one_by_one(name, caplog):
    host = host_of(name)
    rows = [(), edit(host, 1, 1.5, operation="add")]
    asked = texts(6, 9)
    expected = alone(host, asked, rows, 5)
    with caplog.at_level("INFO"):
        jobs = [together(host, asked, rows, 5) for _ in range(2)]
        assert in_turn(jobs, [0, 1]) == [expected, expected]
    assert caplog.text.count("answers one by one") == 1
    assert not able(host)
    assert host not in module._running


def test_rows_that_join_wrongly_are_found_out(monkeypatch):
    host = host_of("llama")
    monkeypatch.setattr(joining, "cut", lambda cache, columns: None)
    assert not able(host)


def test_base_ablation_and_filter_of_the_demo_answer_as_alone():
    host = finish(load(ModelSpec()))
    recipe = load_recipe(PRESETS / "recipes" / "default.yaml")
    filtered = finish(resolve(host, recipe))
    plain = edit(host, 1, 1.0)
    prompts = [host.encode(text) for text in ("How do I whittle a spoon?", "Hi", "What is two?")]
    asked = [([prompt] * 3, [(), filtered, plain]) for prompt in prompts]
    expected = [alone(host, *one, 10) for one in asked]
    jobs = [together(host, *one, 10) for one in asked]
    assert in_turn(jobs, [0, 2, 3]) == expected
    assert empty(host)


def test_what_acts_alike_is_one_operation_as_long_as_it_is_small(small, monkeypatch):
    shared = directions.random(small.layers, small.hidden, 2, 9)
    cells = np.full((small.layers, len(KINDS)), 0.5)
    same = [small.live.compile([(), (RowEdit(shared, cells * n),)]) for n in (1, 2, 3)]
    for ops in joined(same).outputs.values():
        (op,) = ops
        assert (op.rows, len(op.basis), op.factor[:, 0, 0].tolist()) == (
            (1, 3, 5),
            2,
            [0.5, 1, 1.5],
        )
    own = [small.live.compile([edit(small, n), delta(small, n)]) for n in (1, 2, 3)]
    plan = joined(own)
    assert {len(ops) for part in (plan.outputs, plan.deltas) for ops in part.values()} == {1}
    monkeypatch.setattr(plan_joining, "WIDE", 1)
    apart = joined(own)
    assert {len(ops) for part in (apart.outputs, apart.deltas) for ops in part.values()} == {3}
    x = torch.randn(6, 4, small.hidden, generator=torch.Generator().manual_seed(0))
    for place, ops in plan.outputs.items():
        torch.testing.assert_close(run(ops, x, 6), run(apart.outputs[place], x, 6))
        pairs = zip(own, x.split(2), strict=True)
        each = torch.cat([run(one.outputs[place], two, 2) for one, two in pairs])
        torch.testing.assert_close(run(ops, x, 6), each)


@pytest.mark.parametrize(("tokens", "begin"), [(8192, [5]), (30, [2, 2, 1])])
def test_who_come_at_once_begin_in_short_passes_and_others_go_on_between_them(
    small, monkeypatch, passes, tokens, begin
):
    seen, real = [], module.start

    def start(host, texts, *args, **settings):
        seen.append((len(texts), len(passes)))  # rows, and the passes for all before it
        return real(host, texts, *args, **settings)

    monkeypatch.setattr(module, "start", start)
    monkeypatch.setattr(module, "tokens_a_step", lambda host: tokens)
    asked = [([one], [()]) for one in texts(12, 14, 11, 13, 12)]
    assert able(small)
    passes.clear()
    jobs = [partial(list, together(small, *one, 4)) for one in asked]
    found = begun_at_once(small, *jobs)
    assert found == [alone(small, *one, 4) for one in asked]
    assert [rows for rows, _ in seen] == begin
    assert [before for _, before in seen] == list(range(len(begin)))


def test_draws_are_those_of_each_alone(small):
    asked = callers(small)[:4]
    ways = [{"temperature": 1.3, "seed": 1}, {}, {"temperature": 0.8, "top_p": 0.7, "seed": 5},
            {"temperature": 1.3, "seed": [2, 3]}]  # fmt: skip
    expected = [alone(small, *one, **way) for one, way in zip(asked, ways, strict=True)]
    jobs = [together(small, *one, STEPS, **way) for one, way in zip(asked, ways, strict=True)]
    assert in_turn(jobs, [0, 1, 1, 4]) == expected
    other = list(together(small, *asked[0], STEPS, temperature=1.3, seed=2))
    assert other != expected[0]


def test_an_answer_ends_by_its_own_end_limit_and_context(small, monkeypatch):
    asked = [([one], [()]) for one in (*texts(8, 6), [7] * (small.context - 4))]
    words = [next(iter(column.values())) for column in alone(small, *asked[0])]
    monkeypatch.setattr(small, "stop", frozenset({words[3]} - set(words[:3])))
    limits = (STEPS, 5, STEPS)
    expected = [alone(small, *one, n) for one, n in zip(asked, limits, strict=True)]
    assert (len(expected[0]), len(expected[2])) == (3, 4)
    jobs = [together(small, *one, n) for one, n in zip(asked, limits, strict=True)]
    assert in_turn(jobs, [0, 0, 1]) == expected
    assert list(together(small, *asked[0], 0)) == []


def test_who_is_closed_leaves_the_others_as_they_are_and_makes_room(small):
    asked = callers(small)
    batch, expected = running(small), alone(small, *asked[1])
    stays, goes = (together(small, *asked[n], STEPS) for n in (1, 2))
    found = [next(stays), next(stays)]
    next(goes)
    while batch.size < 4:
        found.append(next(stays))
    width = batch._block.batch.ids.shape[1]
    goes.close()
    assert batch.size == 2
    assert batch._block.batch.ids.shape[1] == batch._block.batch.mask.sum(-1).max() < width
    assert found + list(stays) == expected
    assert empty(small)


def test_who_is_closed_before_his_turn_is_never_begun(small, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    batch = module.RunningBatch()
    monkeypatch.setitem(module._running, small, batch)
    batch._most = 2
    first = together(small, *callers(small)[0], STEPS)
    next(first)
    waiting = module._Guest(small.live.compile([()]).ending([0]), STEPS, 0.0, 1.0)
    waiting.rows = [module._Answer(waiting, 0, texts(5)[0], (), torch.Generator())]
    batch.enter(waiting)
    next(first)
    assert (batch.size, list(batch._waiting)) == (2, [waiting])
    batch.leave(waiting)
    assert not batch._waiting
    first.close()
    assert empty(small)


def test_a_caller_that_never_asks_again_holds_up_nobody(small):
    asked = callers(small)
    expected = [alone(small, *asked[n]) for n in (0, 1)]
    silent = together(small, *asked[0], STEPS)
    begun = next(silent)
    assert list(together(small, *asked[1], STEPS)) == expected[1]
    assert [begun, *silent] == expected[0]  # what was computed meanwhile is there
    assert empty(small)


def test_who_waits_for_a_pass_has_its_token_though_its_leader_asks_no_more(small, monkeypatch):
    leads, waits = (together(small, *callers(small)[n], STEPS) for n in (0, 1))
    next(leads)
    next(waits)
    batch, real = running(small), joining.forward
    for guest in batch._guests:
        guest.columns.clear()
    inside, go = threading.Event(), threading.Event()

    def slow(*args, **settings):
        inside.set()
        assert go.wait(60)
        return real(*args, **settings)

    monkeypatch.setattr(joining, "forward", slow)

    def follow():
        assert inside.wait(60)
        return next(waits)

    def watch():
        assert inside.wait(60)
        end = time.monotonic() + 60
        while not any(guest.awake._cond._waiters for guest in batch._guests):
            assert time.monotonic() < end
            time.sleep(0.001)
        go.set()

    column, same, _ = at_once(lambda: next(leads), follow, watch)
    assert [len(one) for one in (column, same)] == [2, 2]
    leads.close()
    waits.close()
    assert empty(small)


def test_no_more_rows_than_the_bound_and_those_that_wait_keep_their_order(
    small, monkeypatch, passes
):
    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setitem(module._running, small, module.RunningBatch())
    asked = [([one] * 2, [(), edit(small, n)]) for n, one in enumerate(texts(5, 7, 9, 6, 8))]
    expected = [alone(small, *one, 6) for one in asked]
    assert able(small)
    passes.clear()
    ended = []

    def answer(number):
        found = list(together(small, *asked[number], 6))
        ended.append(number)
        return found

    assert at_once(*(partial(answer, n) for n in range(5))) == expected
    assert max(passes) <= 4
    many = texts(*[5] * 6)
    assert list(together(small, many, None, 3)) == alone(small, many, None, 3)  # alone
    assert empty(small)


def test_a_row_that_computes_no_numbers_ends_its_caller_alone(small):
    asked = callers(small)
    huge = np.zeros((small.layers, len(KINDS)))
    huge[-1] = 1e30
    bad = (RowEdit(directions.random(small.layers, small.hidden, 1, 3), huge),) * 3
    one = asked[0][0][0]
    with pytest.raises(UserError, match="computes NaN"):
        list(generate(small, [one], [bad], 4))

    def refused():
        with pytest.raises(UserError, match="computes NaN"):
            list(together(small, [one] * 2, [(), bad], STEPS))

    expected = alone(small, *asked[1])
    assert begun_at_once(small, refused, lambda: list(together(small, *asked[1], STEPS))) == [
        None,
        expected,
    ]
    good = together(small, *asked[1], STEPS)
    found = [next(good)]
    refused()
    assert found + list(good) == expected
    assert empty(small)


def test_a_pass_that_fails_is_told_to_all_in_it_and_the_batch_goes_on(small, monkeypatch):
    asked = callers(small)
    jobs = [together(small, *asked[n], STEPS) for n in (0, 1)]
    for job in jobs * 2:
        next(job)

    def broken(*_, **__):
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(joining, "forward", broken)
        for job in jobs:
            with pytest.raises(RuntimeError, match="a kernel failed"):
                list(job)
    assert empty(small)
    assert list(together(small, *asked[2], STEPS)) == alone(small, *asked[2])


def test_prompts_that_fail_fail_alone(small, monkeypatch):
    asked = callers(small)
    real, poison = module.forward, 251

    def picky(host, batch, *args, **settings):
        if bool((batch.ids == poison).any()):
            raise RuntimeError("a prompt failed")
        return real(host, batch, *args, **settings)

    monkeypatch.setattr(module, "forward", picky)
    expected = [alone(small, *asked[n]) for n in (0, 1)]

    def refused():
        with pytest.raises(RuntimeError, match="a prompt failed"):
            list(together(small, [[7, poison, 8]], None, STEPS))

    first, last = (lambda n=n: list(together(small, *asked[n], STEPS)) for n in (0, 1))
    found = begun_at_once(small, first, refused, last)
    assert [found[0], found[2]] == expected
    assert empty(small)


def test_where_memory_is_short_fewer_answer_at_a_time_and_all_as_alone(small, monkeypatch, caplog):
    caplog.set_level("INFO")
    asked = callers(small)
    expected = [alone(small, *one) for one in asked]
    assert able(small)
    refused = []
    for place in (module, joining):
        real = place.forward

        def tight(host, batch, *args, real=real, place=place, **settings):
            if len(batch.ids) > 4:
                refused.append(place)
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return real(host, batch, *args, **settings)

        monkeypatch.setattr(place, "forward", tight)
    jobs = [partial(list, together(small, *one, STEPS)) for one in asked]
    assert begun_at_once(small, *jobs) == expected
    assert module in refused
    refused.clear()
    jobs = [together(small, *one, STEPS) for one in asked]
    assert in_turn(jobs, [0, 0, 1, 1, 2, 3]) == expected
    # rows in the middle of their answers began again, and not at every step
    assert 0 < refused.count(joining) < 6
    assert running(small).short >= len(refused)
    assert "at a time do not fit the memory; going on with" in caplog.text
    assert empty(small)


def test_a_prompt_that_does_not_fit_waits_for_the_others_to_leave(small, monkeypatch):
    asked = callers(small)
    expected = [alone(small, *asked[n]) for n in (0, 2)]
    batch, real = running(small), module.forward

    def tight(host, rows, *args, **settings):
        if batch.size:
            raise torch.OutOfMemoryError
        return real(host, rows, *args, **settings)

    monkeypatch.setattr(module, "forward", tight)
    jobs = [together(small, *asked[n], STEPS) for n in (0, 2)]
    assert in_turn(jobs, [0, 1]) == expected
    monkeypatch.setattr(module, "forward", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="a prompt of 11 tokens does not fit the memory"):
        list(together(small, *asked[0], STEPS))
    assert empty(small)


def test_an_interrupt_of_the_one_who_leads_leaves_the_others_their_answers(small, monkeypatch):
    asked = callers(small)
    expected = alone(small, *asked[1])
    leads, other = (together(small, *asked[n], STEPS) for n in (0, 1))
    found = [next(other)]
    next(leads)
    found += [next(other)]
    for _ in range(2):
        next(leads)
    with monkeypatch.context() as patch:
        patch.setattr(joining, "forward", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(leads)
    assert found + list(other) == expected
    assert empty(small)


def test_many_threads_that_join_and_leave_at_any_moment_answer_as_alone(small):
    asked = callers(small)
    expected = [alone(small, *one) for one in asked]
    before = threading.active_count()

    def visitor(number):
        draw = torch.Generator().manual_seed(number)
        for turn in range(3):
            time.sleep(float(torch.rand((), generator=draw)) * 0.03)
            which = (number + turn) % len(asked)
            job = together(small, *asked[which], STEPS)
            if turn == 1 and number % 2:  # loses interest
                assert [next(job), next(job)] == expected[which][:2]
                job.close()
            else:
                assert list(job) == expected[which]

    at_once(*(partial(visitor, number) for number in range(8)))
    assert threading.active_count() <= before
    assert empty(small)


def test_chats_are_in_the_batch(small, passes):
    asked = [[{"role": "user", "content": text}] for text in ("Hi", "And who are you?", "こん")]
    rows = [[(), edit(small, n)] for n in range(3)]
    pairs = list(zip(asked, rows, strict=True))
    expected = [finish(chat(small, row, [one] * 2, 9)) for one, row in pairs]
    passes.clear()
    jobs = [chat(small, row, [one] * 2, 9) for one, row in pairs]
    found = begun_at_once(small, *(lambda job=job: finish(job) for job in jobs))
    assert found == expected
    assert passes == [6] * 8


def test_a_batch_goes_with_its_model():
    host = host_of("llama")
    job = together(host, texts(5), None, STEPS)
    next(job)
    job.close()
    seen = weakref.ref(running(host))
    del host, job
    gc.collect()
    assert seen() is None


# Jobs


def test_a_chat_begins_before_jobs_that_wait_and_all_are_as_alone(small, monkeypatch, passes):
    asked = callers(small)
    monkeypatch.setattr(module, "JOBS", 2)  # so the second job waits for the first
    expected = [alone(small, *asked[n]) for n in (0, 1, 2)]
    first, second = (together(small, *asked[n], STEPS, job=True) for n in (0, 1))
    chat = together(small, *asked[2], STEPS)
    assert in_turn([first, second, chat], [0, 1, 2]) == expected
    assert max(passes) == 4  # the first job and the chat
    assert empty(small)


def test_a_job_with_all_its_rows_leaves_chats_their_room(small, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(module, "JOBS", 2)
    asked = callers(small)
    job = together(small, *asked[0], STEPS, job=True)
    chat = together(small, *asked[2], STEPS)
    begun, column = next(job), next(chat)
    assert running(small).size == 4
    assert [column, *chat] == alone(small, *asked[2])
    assert [begun, *job] == alone(small, *asked[0])


def test_a_job_that_does_not_fit_beside_a_chat_tries_fewer_rows_at_once(small, monkeypatch):
    asked, prompts = callers(small), [small.encode("Hi")] * 4
    expected, (said,) = alone(small, *asked[0]), finish(replies(small, prompts[:1], None, 4))
    chat = together(small, *asked[0], STEPS)
    begun, real = next(chat), joining.forward

    def tight(host, batch, *args, **settings):
        if len(batch.ids) > 3:
            raise torch.OutOfMemoryError
        return real(host, batch, *args, **settings)

    every_pass(monkeypatch, tight)
    assert finish(replies(small, prompts, None, 4)) == [said] * 4
    assert [begun, *chat] == expected
    assert empty(small)


def test_rows_of_jobs_stay_apart_where_they_would_hold_up_chats_or_round(small, monkeypatch):
    assert together_with_chats(small)
    monkeypatch.setattr(small, "parameters", 135_000_000)  # a pass of 34 rows is a long one
    assert not together_with_chats(small)
    half = host_of("llama")
    half.model.to(torch.bfloat16)
    assert able(half)
    assert not together_with_chats(half)
