"""One line for all jobs: places, fairness, slices, limits; leaving frees the place at once."""

import threading
from contextlib import ExitStack, closing

import pytest

from sst_ui.progress import Midway, Progress, Waiting
from sst_ui.ui.services import job_queue, roles
from sst_ui.ui.services.job_queue import JobQueue
from sst_ui.ui.services.roles import Actor, Refused, Role, acting

ANNA, BERT, CARL = (Actor(Role.VISITOR, name) for name in ("anna", "bert", "carl"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(job_queue, "LOOK", 0.0)


def job(name, steps=3):
    for step in range(steps):
        yield Progress(name, step, steps)
    return name


class Started:
    """A visitor's job in the line, driven by hand."""

    def __init__(self, queue, who, name, steps=3):
        self.who, self.steps = who, queue.turn(job(name, steps))

    def next(self):
        with acting(self.who):
            return next(self.steps, None)

    def leave(self):
        self.steps.close()


def test_so_many_run_and_the_others_are_told_their_place():
    queue = JobQueue(at_once=1)
    first, second, third = (Started(queue, who, who.name) for who in (ANNA, BERT, CARL))
    assert first.next().stage == "anna"
    assert second.next() == Waiting("queue", 0, 1, before=0)
    assert third.next() == Waiting("queue", 0, 1, before=1)
    assert queue.sizes == (1, 2)
    while first.next():
        pass
    assert second.next().stage == "bert"
    told = third.next()
    assert told.before == 0
    assert told.seconds is not None  # known from the first one
    assert queue.sizes == (1, 1)


def test_who_has_fewest_running_comes_first():
    queue = JobQueue(at_once=1)
    running, more, other = (Started(queue, who, "") for who in (ANNA, ANNA, BERT))
    running.next()
    assert more.next().before == 0
    assert other.next().before == 0  # though it came later
    assert more.next().before == 1


def test_leaving_gives_the_place_to_the_next_at_once():
    queue = JobQueue(at_once=1)
    closed = []

    def lasting():
        try:
            yield Progress("long", 0, 1)
            yield Progress("long", 0, 1)
        finally:
            closed.append(True)

    with acting(ANNA):
        first = queue.turn(lasting())
        next(first)
    second, third = Started(queue, BERT, "b"), Started(queue, CARL, "c")
    assert second.next().before == 0
    assert third.next().before == 1
    second.leave()
    assert third.next().before == 0
    first.close()
    assert closed == [True]
    assert third.next().stage == "c"


def test_a_job_that_failed_leaves_too():
    queue = JobQueue(at_once=1)

    def failing():
        yield Progress("", 0, 1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(queue.turn(failing()))
    assert queue.sizes == (0, 0)


def test_a_long_job_lets_others_go_first_and_comes_back(monkeypatch):
    queue = JobQueue(at_once=1)
    monkeypatch.setattr(job_queue, "SLICE", 0.0)
    long, short = Started(queue, ANNA, "long", 5), Started(queue, BERT, "short", 2)
    assert long.next().stage == "long"
    assert short.next().stage == "queue"
    assert long.next().stage == "queue"  # its slice is over and somebody waits
    assert [short.next().stage, short.next().stage] == ["short", "queue"]  # so is that one's
    assert long.next() == Progress("long", 1, 5)  # nothing of it is lost
    assert long.next().stage == "queue"
    assert short.next() == Progress("short", 1, 2)


def test_a_job_keeps_its_turn_to_the_end_of_a_batch_that_it_has_begun(monkeypatch):
    queue = JobQueue(at_once=1)
    monkeypatch.setattr(job_queue, "SLICE", 0.0)

    def answering():
        yield Midway("amid", 0, 2)
        yield Midway("amid", 1, 2)
        yield Progress("between", 2, 2)
        yield Progress("next", 2, 2)

    long, short = Started(queue, ANNA, "long"), Started(queue, BERT, "short", 2)
    long.steps = queue.turn(answering())
    assert long.next().stage == "amid"
    assert short.next().stage == "queue"
    assert [long.next().stage, long.next().stage] == ["amid", "between"]
    assert long.next().stage == "queue"  # nothing is held now
    assert short.next().stage == "short"


def test_nobody_gives_way_where_nobody_waits(monkeypatch):
    monkeypatch.setattr(job_queue, "SLICE", 0.0)
    with acting(ANNA):
        assert [step.done for step in JobQueue(at_once=1).turn(job("", 4))] == [0, 1, 2, 3]


def test_one_visitor_has_so_many_jobs_and_an_owner_any():
    queue = JobQueue(at_once=9)
    mine = [Started(queue, ANNA, "") for _ in range(2)]
    assert all(each.next() for each in mine)
    with acting(ANNA), pytest.raises(Refused, match="2 jobs at a time"):
        next(queue.turn(job("")))
    assert Started(queue, BERT, "").next()
    mine[0].leave()
    assert Started(queue, ANNA, "").next()
    owner = Actor(Role.OWNER)
    assert all(Started(queue, owner, "").next() for _ in range(5))


def test_a_line_that_is_full_says_so(monkeypatch):
    monkeypatch.setattr(job_queue, "MOST", 1)
    queue = JobQueue(at_once=1)
    running, waiting = Started(queue, ANNA, ""), Started(queue, BERT, "")
    running.next(), waiting.next()
    with acting(CARL), pytest.raises(Refused, match="waiting already"):
        next(queue.turn(job("")))


def test_the_hours_tokens_are_counted_for_each_and_come_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(job_queue.time, "monotonic", lambda: now[0])
    queue, limit = JobQueue(), roles.LIMITS[Role.VISITOR].hour
    with acting(ANNA):
        queue.spend(limit - 10)
        with pytest.raises(Refused, match="again in 60 minutes"):
            queue.spend(11)
        queue.spend(10)
        now[0] += 3000
        with pytest.raises(Refused, match="again in 10 minutes"):
            queue.spend(1)
        now[0] += 601
        queue.spend(limit)
    with acting(BERT):
        queue.spend(limit)
    with acting(Actor(Role.OWNER)):
        queue.spend(10 * limit)


def test_a_job_that_is_not_taken_in_costs_no_tokens(monkeypatch):
    monkeypatch.setattr(job_queue, "MOST", 1)
    queue, limit = JobQueue(at_once=1), roles.LIMITS[Role.VISITOR].hour
    running = [Started(queue, ANNA, ""), Started(queue, ANNA, "")]
    assert all(each.next() for each in running)
    for who, why in ((ANNA, "2 jobs at a time"), (BERT, "waiting already")):
        with acting(who):
            with pytest.raises(Refused, match=why):
                next(queue.turn(job(""), limit))
            queue.spend(limit)


def test_a_job_of_more_tokens_than_are_left_takes_no_place():
    queue, limit = JobQueue(), roles.LIMITS[Role.VISITOR].hour
    with acting(ANNA):
        with closing(queue.turn(job(""), limit - 10)) as taken:
            next(taken)
        with pytest.raises(Refused, match="an hour"):
            next(queue.turn(job(""), 11))
        assert queue.sizes == (0, 0)
        next(queue.turn(job(""), 10))


def test_one_visitor_has_so_many_answers_at_a_time():
    queue, most = JobQueue(), roles.LIMITS[Role.VISITOR].chats
    with ExitStack() as stack, acting(ANNA):
        for _ in range(most):
            stack.enter_context(queue.chatting())
        with pytest.raises(Refused, match=f"{most} answers at a time"), queue.chatting():
            pass
        with acting(BERT), queue.chatting():
            pass
    with acting(ANNA), queue.chatting():
        pass


def test_from_many_threads_no_more_run_than_may():
    queue, most, guard, running = JobQueue(at_once=3), [], threading.Lock(), [0]

    def counted():
        with guard:
            running[0] += 1
            most.append(running[0])
        yield Progress("", 0, 1)
        with guard:
            running[0] -= 1

    def one(number):
        with acting(Actor(Role.VISITOR, f"{number}")), closing(queue.turn(counted())) as steps:
            for _ in steps:
                pass

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 12
    assert max(most) <= 3
    assert queue.sizes == (0, 0)
