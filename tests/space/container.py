"""The container, rehearsed without one: `python -m tests.space.container`.

Takes the steps of the Dockerfile in order: copies what .dockerignore lets in, runs what it installs
in a fresh environment of the same Python, and starts its command with its environment, as its user,
shut in (`sandbox.py`) so that only the volume and /tmp can be written, its home neither. It is
served behind a proxy under a path, and a browser does what a visitor does (`visit.py`).

It does not build an image: what the base image holds, and Docker's own doing, are not rehearsed.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from sst_ui.paths import ROOT
from tests.browser.chromium import executable
from tests.browser.conftest import ARGUMENTS
from tests.patience import MILLISECONDS, SECONDS
from tests.space import sandbox, visit
from tests.space.proxy import proxied
from tests.space.rehearsal import Log, free_port, interpreter, versions
from tests.space.sandbox import Place

PREFIX = "/studio"  # path of the page behind the proxy
VOLUME = "/data"


class Image:
    """What a Dockerfile says, as far as this one says it.

    Attributes:
        python: version of the base image's.
        env: the environment.
        folder: where the program lies.
        runs: commands, in order.
        user, command, health: who runs what, and how it is seen to live.
        allowed: top-level names that the build sees.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.env: dict[str, str] = {}
        self.runs: list[str] = []
        self.user = self.folder = self.python = ""
        self.command: list[str] = []
        self.health: list[str] = []
        for word, rest in _instructions((root / "Dockerfile").read_text()):
            self._take(word, rest)
        lines = (root / ".dockerignore").read_text().splitlines()
        self.allowed = tuple(line[1:] for line in lines if line.startswith("!"))
        assert "*" in lines, ".dockerignore lets in what nobody named"

    def _take(self, word: str, rest: str) -> None:
        if word == "FROM":
            self.python = re.fullmatch(r"python:(\d+\.\d+)-slim", rest)[1]
        elif word == "ENV":
            self.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "WORKDIR":
            self.folder = rest
        elif word == "RUN":
            self.runs.append(rest)
        elif word == "USER":
            self.user = rest
        elif word == "CMD":
            self.command = json.loads(rest)
        elif word == "HEALTHCHECK":
            self.health = json.loads(rest.partition("CMD")[2])
        else:
            assert word in ("ARG", "COPY", "EXPOSE", "VOLUME"), f"{word} is not rehearsed"

    def here(self, place: Place, port: int) -> dict[str, str]:
        """Its environment on this machine: the volume is the place's home, the home the copy."""
        env = {name: value.replace(VOLUME, str(place.home)) for name, value in self.env.items()}
        path = f"{place.venv}/bin:/usr/local/bin:/usr/bin:/bin"
        return {**env, "HOME": str(place.app), "PATH": path, "GRADIO_SERVER_PORT": str(port)}


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        yield word, " ".join(rest.split())


def built(place: Place, image: Image, python: str) -> Iterator[str]:
    """The steps of the build."""
    subprocess.run([python, "-m", "venv", "--clear", str(place.venv)], check=True)
    env = {**os.environ, "PATH": f"{place.venv}/bin:{os.environ['PATH']}", "PIP_QUIET": "2"}
    for run in image.runs:
        if run.startswith("useradd"):
            yield f"RUN {run}: not here; the process is user {sandbox.USER} with a folder as volume"
            continue
        subprocess.run(["sh", "-c", run], cwd=place.app, env=env, check=True)
        yield f"RUN {run}"
    yield versions(place)


def served(place: Place, image: Image) -> Iterator[str]:
    """Its command, shut in, behind a proxy under a path; what a visitor does."""
    port = free_port(int(image.env["GRADIO_SERVER_PORT"]))
    env = image.here(place, port) | {"GRADIO_ROOT_PATH": PREFIX}
    yield sandbox.told(place, env)
    with sandbox.running(place, image.command, env, port, SECONDS) as running:
        health = [word.replace(":7860/", f":{port}/") for word in image.health]
        command = sandbox.shut_in(place, health)
        subprocess.run(command, env=env, check=True)
        yield f"CMD {json.dumps(image.command)} answers, and HEALTHCHECK is content"
        with proxied(port, PREFIX) as outside, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=executable(), args=list(ARGUMENTS), timeout=MILLISECONDS
            )
            expect.set_options(timeout=MILLISECONDS)
            there = visit.Visit(browser, f"http://127.0.0.1:{outside}{PREFIX}")
            yield f"behind a proxy, under {PREFIX}:"
            with visit.pictured(browser, place.root):
                page = there.opened()
                yield from visit.works(page)
                yield from visit.is_guarded(page)
                yield from visit.opens_links(there)
            browser.close()
        with urllib.request.urlopen(f"{running.address}/", timeout=SECONDS) as found:
            assert PREFIX in found.read().decode()  # the page knows its path, however it is asked
        yield from visit.is_calm(running.log.read_text())
        yield f"it holds {running.memory() / 2**30:.1f} GB"


def main() -> int:
    """Rehearse; an error where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="the interpreter to make the environment with")
    parser.add_argument("--folder", type=Path, help="where; made new below /var/tmp unless given")
    parser.add_argument("--again", action="store_true", help="with the folder's environment")
    chosen = parser.parse_args()
    root = chosen.folder or Path(tempfile.mkdtemp(prefix="container-", dir="/var/tmp"))
    root.mkdir(parents=True, exist_ok=True)
    place, image, log = Place(root.resolve()), Image(), Log()
    log(f"rehearsing in {root}")
    log(f"{sandbox.copied(ROOT, place.app, image.allowed)} files copied")
    if not chosen.again:
        for line in built(place, image, interpreter(image.python, chosen.python)):
            log(line)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(place.app)], check=True)
    sandbox.settle(place)
    for line in served(place, image):
        log(line)
    log("all of it works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
