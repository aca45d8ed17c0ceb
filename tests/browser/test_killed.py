"""The whole program killed in the middle of its work, and started again over the same folders."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import expect

from sst_ui import disk
from sst_ui.jobs.history.store import History
from sst_ui.paths import ROOT
from tests.browser.test_studio import answers, tab
from tests.patience import MILLISECONDS, until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no such signal"),
]

STRENGTH = "#strength input[type=number]"
FOLDERS = ("cache", "home", "outputs")


class Studio:
    """`python app.py` in a process of its own, with the same folders every time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            self.port = door.getsockname()[1]

    def start(self) -> None:
        own = {f"SST_{name.upper()}": str(self.folder / name) for name in FOLDERS}
        own |= {"TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py", "--port", str(self.port)], cwd=ROOT,
                env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self.answers)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{self.address}/config"):
            return True
        return False

    def kill(self) -> None:
        """As the system does when memory is short; nothing of it may be left running."""
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)

    def left(self) -> list[str]:
        """What unfinished writers have left below the folders that are the user's."""
        found = [path for name in FOLDERS[1:] for path in (self.folder / name).rglob("*")]
        return [path.name for path in found if disk.HIDDEN.fullmatch(path.name)]

    def runs(self) -> list[str]:
        return [run.digest for run in History(self.folder / "home" / "history.sqlite").list()]


class Visit:
    """A visitor's page on it, a fresh one after every kill."""

    def __init__(self, chromium, studio: Studio) -> None:
        self.chromium, self.studio = chromium, studio
        self.open()

    def open(self) -> None:
        self.context = self.chromium.new_context(locale="en-US", reduced_motion="reduce")
        self.page = self.context.new_page()
        self.page.set_default_timeout(MILLISECONDS)
        self.page.goto(self.studio.address)
        self.page.wait_for_selector("#curve .stat", state="attached")
        self.page.wait_for_selector("#header .digest")

    def killed(self) -> None:
        """Kill the program, start it again and look at it."""
        self.studio.kill()
        self.context.close()
        self.studio.start()
        assert self.studio.left() == []
        self.open()
        assert "Traceback" not in self.studio.log.read_text()

    def chats(self) -> None:
        tab(self.page, "work-tabs", 0)
        self.page.fill("#box textarea", "Hello")
        self.page.click("#send")
        expect(answers(self.page, "right")).to_have_count(1)
        expect(self.page.locator("#stop")).to_be_hidden()

    def applies(self, strength: str) -> str:
        """Apply a strength; the recipe's hash, once the list of runs has it."""
        self.page.fill(STRENGTH, strength)
        self.page.press(STRENGTH, "Enter")
        self.page.click("#apply:has-text('Apply changes')")
        expect(self.page.locator(".variant.current")).to_contain_text(f"×{strength}")
        tab(self.page, "work-tabs", 3)
        expect(self.row(strength)).to_be_visible()
        return self.page.locator("#header .digest code").inner_text()

    def row(self, strength: str):
        """The run of that strength."""
        return self.page.locator(".run:not(.heads)").filter(has_text=f"×{strength}").first


@pytest.fixture(scope="module")
def visit(chromium, address, tmp_path_factory):
    """A page on a studio that finds the demo measured, as the package's own has left it."""
    studio = Studio(tmp_path_factory.mktemp("killed"))
    shutil.copytree(os.environ["SST_CACHE"], studio.folder / "cache")
    try:
        studio.start()
        visit = Visit(chromium, studio)
        yield visit
        visit.context.close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(studio.process.pid, signal.SIGKILL)
        studio.process.wait()


def test_killed_while_an_answer_comes_and_metrics_are_measured_right_after_a_run_was_shown(visit):
    digest = visit.applies("0.5")
    expect(visit.page.locator("#cancel-metrics")).to_be_visible()
    tab(visit.page, "work-tabs", 0)
    visit.page.fill("#box textarea", "Tell me a long story about a spoon")
    visit.page.click("#send")
    expect(visit.page.locator("#stop")).to_be_visible()
    until(lambda: answers(visit.page, "right").count())
    visit.killed()
    assert visit.studio.runs().count(digest) == 1
    assert not list((visit.studio.folder / "home").glob("*damaged*"))
    tab(visit.page, "work-tabs", 3)
    expect(visit.row("0.5")).to_contain_text("demo")
    visit.chats()


def test_killed_while_it_exports_no_half_folder_is_taken_for_a_whole_one(visit):
    digest, outputs = visit.applies("0.75"), visit.studio.folder / "outputs"
    tab(visit.page, "work-tabs", 2)
    visit.page.fill("#export-verify input", "200")  # answers, before the folder is in its place
    visit.page.press("#export-verify input", "Enter")
    visit.page.click("#run-export")
    until(visit.studio.left)
    visit.killed()
    assert os.listdir(outputs) == [], "neither half a folder nor a hidden one"
    assert digest in visit.studio.runs()
    assert visit.applies("0.75") == digest
    tab(visit.page, "work-tabs", 2)
    visit.page.click("#run-export")
    with visit.page.expect_download() as started:
        visit.page.click("#download-export")
    assert digest in started.value.suggested_filename
    (whole,) = outputs.iterdir()
    assert (whole / "adapter_model.safetensors").is_file()


def test_what_was_temporary_in_the_killed_processes_is_gone(visit):
    names = [name for name in os.listdir(visit.studio.folder) if disk.HIDDEN.fullmatch(name)]
    assert len(names) == 1, "that of the process that runs"
    visit.chats()
