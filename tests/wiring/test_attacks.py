"""A real shared studio, attacked: over its socket, through every event and endpoint that it has."""

import errno
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import httpx
import pytest
import yaml

from sst_ui import reach
from sst_ui.errors import UserError
from sst_ui.paths import output_dir
from sst_ui.ui import build
from sst_ui.ui.services import roles, visitors
from tests.patience import SECONDS, launched

MARK = "the-owners-secret-words"
RECIPE = {"version": 1, "model": {"id": "demo"}, "edits": [{"weights": {"profile": "default"}}]}
TEXTUAL = (gr.Textbox, gr.Dropdown, gr.Code, gr.File, gr.UploadButton, gr.Number)
LONG = {"search": "run", "export": "export"}  # events that would do honest work for a minute


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A folder of the owner's with one of everything that can be named."""
    folder = tmp_path_factory.mktemp("owner")
    rows = [{"prompt": f"{MARK} {n}", "answer": MARK, "label": "refused"} for n in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "config.json").write_text(json.dumps({"model_type": MARK}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "name": MARK}))
    return folder


@pytest.fixture(scope="module")
def page(engine):
    """The page of a shared studio."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPACE_ID", "someone/studio")
        patch.setattr(engine, "history", None)
        assert visitors.admit("demo")
        yield build(engine)
        reach.limit(None)


@pytest.fixture(scope="module")
def visitor(page):
    """A program that speaks to it as a browser does."""
    address = launched(page)
    with httpx.Client(base_url=address, timeout=SECONDS) as client:
        yield client
    page.close()


@pytest.fixture(scope="module")
def opened(secret):
    """What was opened of the owner's folder, whoever did it."""
    found, on = [], [True]

    def heard(event, arguments):
        if (
            on
            and event in ("open", "os.listdir", "os.scandir")
            and str(secret) in str(arguments[0])
        ):
            found.append(f"{event} {arguments[0]}")

    sys.addaudithook(heard)  # there is no way to take it back
    yield found
    on.clear()


def press(visitor, number, data, window="attacker"):
    """Everything that comes back from an event of the page, as one text."""
    body = {"data": data, "fn_index": number, "session_hash": window}
    joined = visitor.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    told = []
    params = {"session_hash": window}
    with visitor.stream("GET", "/gradio_api/queue/data", params=params) as lines:
        for line in lines.iter_lines():
            told.append(line)
            if '"process_completed"' in line or "close_stream" in line:
                break
    return "\n".join(told)


def events(page):
    """Number and function of everything that runs on the server."""
    return [(number, each) for number, each in page.fns.items() if each.fn is not None]


def named(page, module, name):
    """The first event of that handler."""
    return next(
        (number, each)
        for number, each in events(page)
        if each.fn.__module__.endswith(f".{module}") and each.fn.__name__ == name
    )


def sent(event, text):
    """An event's values with this in every box."""
    return [text if isinstance(box, TEXTUAL) else _first(box) for box in event.inputs]


def _first(box):
    value = getattr(box, "value", None)
    return None if isinstance(box, gr.State | gr.Plot) or callable(value) else value


def test_every_event_and_endpoint_asks_who_it_is(page, monkeypatch):
    nobody = dict.fromkeys(roles.MAY, frozenset())
    for name, some in nobody.items():
        monkeypatch.setitem(roles.MAY, name, some)
    found = events(page)
    assert len(found) > 100
    for number, event in found:
        assert event.fn.asks in roles.MAY, f"{number} {event.fn.__name__} asks nobody"
        with pytest.raises((gr.Error, UserError), match=r"may not|choice"):
            next(event.fn("en"))


def test_no_box_of_any_event_reads_a_file_of_the_machine(page, visitor, secret, opened, engine):
    for text in (str(secret), str(secret / "rows.jsonl")):
        for number, event in events(page):
            module, name = event.fn.__module__.rpartition(".")[2], event.fn.__name__
            if LONG.get(module) == name or event.api_name in ("compare", "evaluate"):
                continue
            told = press(visitor, number, sent(event, text))
            assert MARK not in told, f"{module}.{name} gives {text} away"
            assert opened == [], f"{module}.{name}"
    assert engine.loaded.spec.id == "demo"


@pytest.mark.parametrize("named_in", ["model", "directions", "metrics", "labels", "judge", "merge"])
@pytest.mark.parametrize("way", ["compare", "evaluate"])
def test_no_recipe_of_a_call_names_one(page, visitor, secret, opened, way, named_in):
    rows, recipe = str(secret / "rows.jsonl"), json.loads(json.dumps(RECIPE))
    if named_in == "model":
        recipe["model"]["id"] = str(secret)
    elif named_in == "directions":
        recipe["edits"][0]["directions"] = {"harmful": rows}
    elif named_in == "merge":
        recipe["edits"] = [{"type": "merge", "utility": str(secret), "safety": str(secret)}]
    elif way == "compare":
        return  # it does not evaluate
    else:
        recipe["evaluation"] = {
            "metrics": [f"refusal_rate@{rows}" if named_in == "metrics" else "refusal_rate"],
            "samples": 2,
            "max_new_tokens": 2,
            **({named_in: rows} if named_in in ("labels", "judge") else {}),
        }
    text = yaml.safe_dump(recipe)
    number, _ = next(each for each in events(page) if each[1].api_name == way)
    told = press(visitor, number, ["Hello", text, 4] if way == "compare" else [text])
    assert MARK not in told
    assert opened == []
    assert '"success":false' in told.replace(" ", "")


@pytest.mark.parametrize("sort", ["rows.jsonl", "recipe.yaml"])
def test_no_address_of_the_server_gives_a_file_away(visitor, secret, sort):
    outputs = output_dir()
    outputs.mkdir(parents=True, exist_ok=True)
    (outputs / sort).write_text(MARK)
    for path in (secret / sort, outputs / sort, Path(os.path.relpath(secret / sort))):
        for form in ("/gradio_api/file={}", "/file={}", "/gradio_api/file=../{}"):
            answer = visitor.get(form.format(path))
            assert answer.status_code in (403, 404)
            assert MARK not in answer.text


def test_the_model_stays_the_owners(page, visitor, engine):
    before = engine.loaded
    for handler in ("look", "swap"):
        number, event = named(page, "load_model", handler)
        told = press(visitor, number, sent(event, "someone/model-with-code"))
        assert "choice" in told
    assert engine.loaded is before


def test_what_is_too_long_is_refused_before_it_is_computed(page, visitor):
    text = yaml.safe_dump(RECIPE)
    number, _ = next(each for each in events(page) if each[1].api_name == "compare")
    assert "tokens of an answer" in press(visitor, number, ["Hello", text, 4096])
    huge = {**RECIPE, "evaluation": {"samples": 100000, "max_new_tokens": 4096}}
    number, _ = next(each for each in events(page) if each[1].api_name == "evaluate")
    assert "tokens of a job" in press(visitor, number, [yaml.safe_dump(huge)])


def test_an_upload_is_as_large_as_it_may_be_and_no_larger(visitor):
    small = visitor.post("/gradio_api/upload", files={"files": ("a.txt", b"x")})
    assert small.status_code == 200
    large = visitor.post("/gradio_api/upload", files={"files": ("b.txt", b"x" * 21 * 10**6)})
    assert large.status_code == 413


def upload(visitor, size=600, address="10.0.0.7", path="upload", field="files", **more):
    """Send a file from that address, as the proxy of this machine would hand it on."""
    headers = {"X-Forwarded-For": address, **more}
    files = {field: ("a.txt", b"x" * size)}
    return visitor.post(f"/gradio_api/{path}", files=files, headers=headers)


def test_one_visitor_uploads_so_much_a_day_and_pushes_nobody_out(visitor, monkeypatch):
    for role in (roles.Role.VISITOR, roles.Role.SIGNED_IN):
        limits = replace(roles.LIMITS[role], uploads=2000)
        monkeypatch.setitem(roles.LIMITS, role, limits)
    assert upload(visitor, 21 * 10**6, uploads="none").status_code == 429
    assert upload(visitor).status_code == 200
    assert upload(visitor, field="nothing").status_code == 200
    refused = upload(visitor)
    assert refused.status_code == 429
    assert "A visitor of this shared studio may upload" in refused.text
    assert "again in 1440 minutes" in refused.text
    assert upload(visitor, path="upload/").status_code in (307, 404, 429), "no way round"
    assert upload(visitor, address="10.0.0.8").status_code == 200, "another one is not held up"
    assert upload(visitor, address="2001:db8::1").status_code == 200
    assert upload(visitor, 1600, address="2001:db8::2").status_code == 429, "the same household"


def test_an_upload_that_is_too_large_counts_since_what_was_read_of_it_is_on_the_disk(
    visitor, monkeypatch
):
    limits = replace(roles.LIMITS[roles.Role.VISITOR], uploads=50 * 10**6)
    monkeypatch.setitem(roles.LIMITS, roles.Role.VISITOR, limits)
    codes = [upload(visitor, 21 * 10**6, "10.0.0.9").status_code for _ in range(3)]
    assert codes == [413, 413, 429]


def test_an_upload_onto_a_full_disk_is_said_and_the_studio_goes_on(visitor, monkeypatch, caplog):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("gradio.route_utils.NamedTemporaryFile", full)
        answer = upload(visitor)
    assert answer.status_code == 507
    assert "No space left on device" in answer.text
    assert "could not be saved" in caplog.text
    assert upload(visitor).status_code == 200


def test_a_key_is_a_visitor_known_by_it(visitor, monkeypatch):
    limits = replace(roles.LIMITS[roles.Role.VISITOR], uploads=0)
    monkeypatch.setitem(roles.LIMITS, roles.Role.VISITOR, limits)
    roles.keys(("a-long-enough-key",))
    try:
        assert upload(visitor, Authorization="Bearer a-long-enough-key").status_code == 200
        assert upload(visitor, Authorization="Bearer another").status_code == 429
    finally:
        roles.keys(())


def test_an_upload_of_unknown_size_and_a_film_are_refused(visitor):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = visitor.post("/gradio_api/upload", content=iter([b"x"]), headers=headers)
    assert answer.status_code == 411
    assert upload(visitor, path="process_recording", field="video").status_code == 404


def test_at_home_uploads_have_no_limit(visitor, monkeypatch):
    monkeypatch.delenv("SPACE_ID")
    monkeypatch.setitem(
        roles.LIMITS, roles.Role.VISITOR, replace(roles.LIMITS[roles.Role.VISITOR], uploads=0)
    )
    assert upload(visitor).status_code == 200


def test_uploads_together_are_kept_within_room(tmp_path):
    for age, name in enumerate("abcd"):
        path = tmp_path / name / "file"
        path.parent.mkdir()
        path.write_bytes(b"x" * 100)
        os.utime(path, (age, age))
    visitors.make_room(tmp_path, 250)
    assert [name for name in "abcd" if (tmp_path / name / "file").exists()] == ["c", "d"]


def test_an_upload_of_before_the_clock_was_set_back_does_not_outlive_the_newer_ones(tmp_path):
    names = "abc"
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 100)
    hour = time.time() + 3600
    os.utime(tmp_path / "a", (hour, hour))
    visitors.make_room(tmp_path, 10**6)
    assert (tmp_path / "a").stat().st_mtime <= time.time()
    for name in "bc":  # within what a network's clock may be ahead
        os.utime(tmp_path / name, (time.time() + 5,) * 2)
    visitors.make_room(tmp_path, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_another_windows_answer_or_job_is_not_stopped(page, visitor, engine):
    mine = engine.answering("honest")
    job = engine.begin("export honest")
    for module in ("chat", "export", "apply", "evaluate", "search", "search_choices"):
        number, event = named(page, module, "stop")
        press(visitor, number, sent(event, "export honest"))
    assert not mine.stopped
    assert not mine.replaced
    assert not job()
    mine.over.set()


def test_keys_close_the_endpoints_to_those_without(page, visitor):
    number, _ = next(each for each in events(page) if each[1].api_name == "weights")
    text = yaml.safe_dump(RECIPE)
    roles.keys(("a-long-enough-key",))
    try:
        assert "wants a key" in press(visitor, number, [text])
        visitor.headers["Authorization"] = "Bearer a-long-enough-key"
        assert '"success":true' in press(visitor, number, [text]).replace(" ", "")
    finally:
        visitor.headers.pop("Authorization", None)
        roles.keys(())
