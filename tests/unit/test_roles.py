"""Who may do what, and how much: the two tables, and who a request is from."""

import threading
from dataclasses import fields
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.paths import ROOT
from sst_ui.recipe import Evaluation, ModelSpec, Recipe
from sst_ui.ui import Engine
from sst_ui.ui.services import quotas, roles
from sst_ui.ui.services.job_queue import JobQueue
from sst_ui.ui.services.roles import (
    LIMITS,
    MAY,
    Actor,
    Limits,
    Refused,
    Role,
    acting,
    asks,
)

VISITOR = Actor(Role.VISITOR, "window")
PEOPLE = (Role.OWNER, Role.SIGNED_IN, Role.VISITOR)


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")


@pytest.fixture
def keys():
    roles.keys(("first-key", "second-key"))
    yield
    roles.keys(())


def request(**more):
    return gr.Request(session_hash="window", **more)


def test_at_home_everybody_is_the_owner_and_may_do_everything():
    assert roles.of(request()) == Actor(Role.OWNER, "window")
    assert roles.current().role is Role.OWNER
    assert all(roles.may(action) for action in roles.MAY)


def test_where_others_come_in_nobody_is_the_owner(shared):
    assert roles.of(request()) == VISITOR
    assert roles.of(request(username="ada")) == Actor(Role.SIGNED_IN, "ada")
    assert roles.current().role is Role.VISITOR  # also a thread that nobody gave a role
    with acting(Actor(Role.SIGNED_IN, "ada")):
        for action in ("change the model", "name files of the machine", "keep runs in the program"):
            with pytest.raises(Refused):
                roles.ask(action)
        roles.ask("push")
    with acting(VISITOR), pytest.raises(Refused, match="sign in, or run your own copy"):
        roles.ask("push")


@pytest.mark.parametrize(("expires", "role"), [(9e12, Role.SIGNED_IN), (1, Role.VISITOR)])
def test_a_hub_account_is_a_sign_in_until_it_expires(shared, expires, role):
    signed = {"oauth_info": {"userinfo": {"preferred_username": "ada"}, "expires_at": expires}}
    sent = request()
    sent.request = SimpleNamespace(scope={"session": signed})
    assert roles.of(sent).role is role


def test_with_keys_a_call_without_one_may_do_nothing_and_the_page_is_as_it_was(shared, keys):
    def call(word):
        return roles.of(request(headers={"authorization": word}), endpoint=True)

    assert call("Bearer second-key") == Actor(Role.SIGNED_IN, "key 2")
    for word in ("", "Bearer ", "Bearer other", "Bearer first-key,second-key"):
        with acting(call(word)), pytest.raises(Refused, match="wants a key"):
            roles.ask("call")
    assert roles.of(request()).role is Role.VISITOR


def test_keys_are_wanted_of_the_owners_own_programs_too(keys):
    assert roles.of(request(headers={}), endpoint=True).role is Role.STRANGER
    mine = request(headers={"authorization": "Bearer first-key"})
    assert roles.of(mine, endpoint=True).role is Role.OWNER


@pytest.fixture
def models():
    roles.models(("someone/small", "demo"))
    yield
    roles.models(())


def test_visitors_open_the_models_that_the_owner_names_and_never_their_code(shared, models):
    for mine in (Actor(Role.VISITOR), Actor(Role.SIGNED_IN, "ada")):
        with acting(mine):
            roles.ask_model(ModelSpec(id="someone/small"))
            with pytest.raises(Refused, match="may open someone/small, demo, and not 'other/one'"):
                roles.ask_model(ModelSpec(id="other/one"))
            with pytest.raises(Refused, match="no code"):
                roles.ask_model(ModelSpec(id="someone/small", trust_remote_code=True))
    roles.models(("hub",))
    with acting(VISITOR):
        roles.ask_model(ModelSpec(id="other/one"))
        with pytest.raises(Refused, match="no code"):
            roles.ask_model(ModelSpec(id="other/one", trust_remote_code=True))
    with acting(Actor(Role.STRANGER)), pytest.raises(Refused):
        roles.ask_model(ModelSpec(id="demo"))


def test_every_step_of_a_generator_runs_as_whoever_began_it(shared):
    seen = []

    @asks("measure", lambda: Actor(Role.SIGNED_IN, "ada"))
    def steps():
        try:
            seen.append(roles.current().name)
            yield 1
            seen.append(roles.current().name)
            yield 2
        finally:
            seen.append(roles.current().name)

    job = steps()
    for _ in range(2):  # each in a thread of its own, as Gradio does
        thread = threading.Thread(target=lambda: next(job))
        thread.start()
        thread.join()
    job.close()
    assert seen == ["ada", "ada", "ada"]
    assert roles.current().name == ""


def test_what_one_may_not_do_does_not_begin(shared, monkeypatch):
    monkeypatch.setitem(roles.MAY, "measure", frozenset({Role.OWNER}))
    begun = []

    @asks("measure")
    def job():
        begun.append(True)
        yield

    @asks("measure")
    def call():
        begun.append(True)

    with pytest.raises(Refused, match="a visitor may not measure"):
        next(job())
    with pytest.raises(Refused):
        call()
    assert begun == []


def test_the_engine_asks_by_itself_whatever_a_handler_forgot(shared):
    engine = Engine()
    with pytest.raises(Refused, match="its owner's choice"):
        next(engine.load(ModelSpec()))
    with pytest.raises(Refused, match="its owner's choice"):
        engine.inspect(ModelSpec(id="gpt2"))
    assert engine.history is None


@pytest.mark.parametrize(
    ("action", "begin"),
    [
        ("measure", lambda engine: engine.evaluate("", Recipe(), Evaluation())),
        ("measure", lambda engine: engine.measure("", None)),
        ("measure", lambda engine: engine.next_decision("", (), None)),
        ("measure", lambda engine: engine.merges.compare("", None, Evaluation())),
        ("search", lambda engine: engine.search("", Recipe(), None, None)),
        ("search", lambda engine: engine.held_out("", Recipe(), Evaluation())),
        ("chat", lambda engine: engine.chat("", [None], [], 1, 0.0)),
        ("export", lambda engine: engine.export("", Recipe(), None, "adapter")),
    ],
)
def test_every_job_asks(shared, monkeypatch, action, begin):
    monkeypatch.setitem(roles.MAY, action, frozenset())
    with pytest.raises(Refused, match=f"may not {action}"):
        next(begin(Engine()))


# --- how much -----------------------------------------------------------------------------------


def test_an_answer_is_as_long_as_the_role_may_have_it(shared):
    queue = JobQueue()
    with acting(VISITOR):
        quotas.answer(queue, 512, 2)
        with pytest.raises(Refused, match=r"4,096 tokens of an answer.*512"):
            quotas.answer(queue, 4096, 2)
    with acting(Actor(Role.OWNER)):
        quotas.answer(queue, 4096, 2)


def test_a_huge_evaluation_or_search_is_refused_before_it_begins(shared):
    with acting(VISITOR):
        quotas.evaluation(Evaluation(), "demo")
        with pytest.raises(Refused, match="tokens of a job"):
            quotas.evaluation(Evaluation(samples=5000, max_new_tokens=500), "demo")
        quotas.search(Recipe(), SearchSpec("tpe", trials=20, samples=32, max_new_tokens=24))
        quotas.search(Recipe(model=ModelSpec(id="someone/small")), SearchSpec("grid"))
        with pytest.raises(Refused, match="tokens of a job"):
            quotas.search(Recipe(), SearchSpec("tpe", trials=10**6))
    with acting(Actor(Role.OWNER)):
        quotas.search(Recipe(), SearchSpec("tpe", trials=10**6))


def test_an_export_that_would_fill_the_disk_is_refused(shared, host, monkeypatch, tmp_path):
    disk = SimpleNamespace(free=10**12)
    monkeypatch.setattr(quotas.shutil, "disk_usage", lambda path: disk)
    with acting(VISITOR):
        quotas.export(host, "model", tmp_path / "out")
        disk.free = quotas.SPARE
        with pytest.raises(Refused, match="nearly full"):
            quotas.export(host, "model", tmp_path / "out")
    with acting(Actor(Role.OWNER)):
        quotas.export(host, "model", tmp_path / "out")


# --- what SECURITY.md says ----------------------------------------------------------------------


def rows(heading):
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    ends = next(n for n in range(start, len(lines)) if not lines[n])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:ends]]
    assert cells[0][1:] == [role.value for role in PEOPLE]
    return {name: values for name, *values in cells[2:]}


def test_the_page_on_security_has_the_programs_own_tables():
    said = {
        name: ["yes" if role in some else "no" for role in PEOPLE] for name, some in MAY.items()
    }
    assert rows("may") == said
    names = (
        "jobs at a time", "answers at a time", "tokens of an answer", "tokens of a job",
        "tokens in an hour", "bytes of an export", "bytes of uploads in a day",
    )  # fmt: skip
    limits = [[getattr(LIMITS[role], each.name) for role in PEOPLE] for each in fields(Limits)]
    said = [["any" if most is None else f"{most:,}" for most in row] for row in limits]
    assert rows("at most") == dict(zip(names, said, strict=True))
