"""Pushing from the page, in a program of its own: with its user's token, and as a Space's visitor.

The Hub is a stand-in on this machine; signing in goes through Gradio's own OAuth.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest
from playwright.sync_api import expect

from sst_ui.paths import ROOT
from tests.browser.test_results import stopped
from tests.browser.test_studio import tab
from tests.patience import MILLISECONDS, SECONDS
from tests.standin import TOKEN, standin

pytestmark = pytest.mark.browser
WATCH = """() => {
  window.told = [];
  const what = {subtree: true, childList: true, characterData: true};
  new MutationObserver(() => {
    const bar = document.querySelector('#export-status .bar');
    if (bar) window.told.push(document.querySelector('#export-status').innerText);
  }).observe(document.querySelector('#export'), what);
}"""


@contextlib.contextmanager
def program(hub, home, **more):
    """A studio that may reach the Hub, started as anybody starts it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {"HF_HOME": str(home / "hf"), "SST_OUTPUTS": str(home / "outputs")}
    folders |= {"SST_HOME": str(home / "home")}
    hushed = {"HF_HUB_DISABLE_XET": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    env = {**os.environ, **folders, **hushed, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", **more}
    address = f"http://127.0.0.1:{port}"
    with open(home / "log.txt", "w+") as log:
        command = [sys.executable, "app.py", "--port", str(port)]
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            end = time.monotonic() + SECONDS
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                log.seek(0)
                assert child.poll() is None, log.read()
                assert time.monotonic() < end, log.read()
                time.sleep(0.3)
            yield address
        finally:
            child.kill()  # how it ends is other tests' business, and takes it a while
            child.wait(SECONDS)


def opened(page, address):
    """The page with its recipe applied, at the Export panel."""
    page.set_default_timeout(MILLISECONDS)
    page.goto(address)
    ready(page)


def ready(page):
    """Wait for the recipe to be applied, and go to the Export panel."""
    page.wait_for_selector("#header .digest")
    expect(page.locator("#apply")).to_contain_text("Applied")
    stopped(page)
    tab(page, "work-tabs", 2)


def exported(page):
    page.fill("#export-verify input", "0")
    page.press("#export-verify input", "Enter")
    page.click("#run-export")
    expect(page.locator("#export-status .notice")).to_contain_text("MB in")


def push(page, name):
    page.fill("#hub-repo input, #hub-repo textarea", name)
    page.click("#push")


def test_a_push_is_private_shows_where_it_is_and_where_it_went(chromium, tmp_path):
    with standin() as hub, program(hub, tmp_path, HF_TOKEN=TOKEN) as address:
        page = chromium.new_page(locale="en-US")
        opened(page, address)
        status = page.locator("#export-status")
        push(page, "ada/edited")
        expect(status).to_contain_text("Export first")
        push(page, "no name")
        expect(page.locator("#hub-repo .said")).to_contain_text("USER/NAME")
        exported(page)
        hub.accounts = {}
        push(page, "ada/edited")
        expect(status.locator(".notice.bad")).to_have_text(
            "The Hub does not accept the token; make a new one with write access."
        )
        assert hub.repos == {}
        hub.accounts = {TOKEN: "ada"}
        push(page, "eve/edited")
        expect(status).to_contain_text("may not write to eve/edited")
        page.evaluate(WATCH)
        push(page, "ada/edited")
        expect(status.locator(".notice.good")).to_contain_text(f"{hub.url}/ada/edited")
        expect(status).to_contain_text("private")
        expect(page.locator("#push")).to_be_enabled()
        assert any("Upload" in line for line in page.evaluate("window.told"))
        repo = hub.repos["ada/edited"]
        assert (repo["private"], repo["commits"]) == (True, 1)
        (folder,) = (tmp_path / "outputs").iterdir()
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        assert {"README.md", "adapter_model.safetensors", "recipe.yaml"} <= files.keys()
        del files[".sst-studio.json"]  # for --force on this machine, not for the Hub
        assert repo["files"] == {name: path.read_bytes() for name, path in files.items()}
        page.click("#hub-private input")
        push(page, "ada/public")
        expect(status).to_contain_text("anyone can see it")
        assert hub.repos["ada/public"]["private"] is False
        page.close()


OAUTH = {
    "SYSTEM": "spaces",
    "SPACE_ID": "owner/studio",
    "OAUTH_CLIENT_ID": "an-id",
    "OAUTH_CLIENT_SECRET": "a-secret",
    "OAUTH_SCOPES": "openid profile manage-repos",
}


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("authlib", "itsdangerous")),
    reason="signing in needs what gradio[oauth] brings: pip install -r requirements-dev.txt",
)
def test_on_a_space_the_visitor_signs_in_and_the_owners_token_is_never_used(chromium, tmp_path):
    with standin() as hub:
        hub.accounts = {"the-owners": "owner", "the-visitors": "ada"}
        hub.visitor = "the-visitors"
        space = {**OAUTH, "OPENID_PROVIDER_URL": hub.url, "HF_TOKEN": "the-owners"}
        with program(hub, tmp_path, **space) as address:
            page = chromium.new_page(locale="en-US")
            opened(page, address)
            exported(page)
            hub.callers.clear()
            push(page, "ada/edited")
            expect(page.locator("#export-status")).to_contain_text("Sign in")
            assert (hub.repos, hub.callers) == ({}, [])
            with page.expect_event("load"):  # of the page that signing in leads back to
                page.click("#hub-login")
            ready(page)
            expect(page.locator("#hub-login")).to_contain_text("ada")
            exported(page)
            push(page, "ada/edited")
            expect(page.locator("#export-status .good")).to_contain_text(f"{hub.url}/ada/edited")
            assert hub.repos["ada/edited"]["private"] is True
            push(page, "owner/edited")
            expect(page.locator("#export-status")).to_contain_text("may not write to owner/edited")
            assert set(hub.callers) == {"ada"}
            page.close()
