"""What a Space and a container are made from, read; `python -m tests.space.rehearsal` and
`python -m tests.space.container` do it.
"""

import argparse
import re

import pytest

from sst_ui.app import options
from sst_ui.paths import ASSETS, PRESETS, ROOT
from sst_ui.ui.state.run_store import shared
from tests.space.container import VOLUME, Image
from tests.space.rehearsal import Front


@pytest.fixture(scope="module")
def image() -> Image:
    return Image()


def test_a_space_may_make_a_visitors_repositories_and_no_more():
    front = Front.read()
    assert front.oauth
    assert front.scopes == ("manage-repos",)  # a push makes a repository, and writes to it


def test_a_container_runs_as_nobody_special_and_writes_to_its_volume_alone(image):
    assert image.user not in ("", "root", "0")
    assert f"useradd --uid 1000 --create-home {image.user}" in image.runs[-1]
    written = {"HF_HOME", "SST_CACHE", "SST_HOME", "SST_OUTPUTS", "GRADIO_TEMP_DIR"}
    assert written <= image.env.keys()
    for name in written:
        assert image.env[name].startswith((f"{VOLUME}/", "/tmp/")), name


def test_a_container_is_asked_whether_it_lives_where_it_answers(image):
    assert image.env["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert f"127.0.0.1:{image.env['GRADIO_SERVER_PORT']}/" in image.health[-1]
    assert image.command == ["python", Front.read().app]
    assert image.python == Front.read().python


def test_an_image_holds_what_the_program_reads_and_nothing_else(image):
    needed = {"app.py", "sst_ui", ASSETS.name, PRESETS.name, "requirements.txt", "constraints.txt"}
    assert needed <= set(image.allowed)
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()}
    others = folders - set(image.allowed)
    assert {"tests", "training", "benchmarks"} <= others
    imported = rf"(?m)^\s*(?:from|import) (?:{'|'.join(re.escape(n) for n in others)})\b"
    for path in (ROOT / "sst_ui").rglob("*.py"):
        assert not re.search(imported, path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SST_SHARED", "1", True),
        ("SST_SHARED", "0", False),
        ("GRADIO_ROOT_PATH", "/studio", True),
        ("GRADIO_ROOT_PATH", "/", False),
        ("SPACE_ID", "owner/studio", True),
        ("HOME", "/home/somebody", False),
    ],
)
def test_a_studio_behind_a_proxy_of_its_own_machine_is_shared(monkeypatch, name, value, told):
    for known in ("SST_SHARED", "GRADIO_ROOT_PATH", "SPACE_ID", "GRADIO_SHARE"):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    monkeypatch.setenv(name, value)
    assert shared() == told


def test_the_owner_of_a_space_names_its_model_in_a_variable(monkeypatch):
    monkeypatch.delenv("SST_MODEL", raising=False)
    asked = argparse.ArgumentParser()
    options(asked)
    assert asked.parse_args([]).model == "demo"
    monkeypatch.setenv("SST_MODEL", "org/name")
    asked = argparse.ArgumentParser()
    options(asked)
    assert asked.parse_args([]).model == "org/name"
    assert asked.parse_args(["--model", "demo"]).model == "demo"
