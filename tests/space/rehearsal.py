"""A Hugging Face Space, rehearsed on this machine: `python -m tests.space.rehearsal`.

The front matter of README.md says which Python and which Gradio. `requirements.txt` is installed
alone into a fresh environment, then what a Space adds by itself; the program starts as a Space
starts it, shut in (`sandbox.py`), behind a proxy with TLS under the Space's own name, and a browser
does what a visitor does (`visit.py`). Signing in and pushing go to a stand-in for the Hub.
"""

import argparse
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml
from playwright.sync_api import expect, sync_playwright

from sst_ui.paths import ROOT
from tests.browser.chromium import executable
from tests.browser.conftest import ARGUMENTS
from tests.patience import MILLISECONDS, SECONDS
from tests.space import device, sandbox, visit
from tests.space.proxy import certified, proxied
from tests.space.sandbox import Place
from tests.standin import Hub, standin

VISITOR, OWNER = "ada", "owner"  # accounts of the stand-in
NAME = "sst-studio"
HOST = f"{OWNER}-{NAME}.hf.space"
ADDED = ("spaces",)  # what a Space installs beside gradio[oauth] at the front matter's version


@dataclass(frozen=True)
class Front:
    """The front matter, as far as it says how a Space is made."""

    python: str
    gradio: str
    app: str
    oauth: bool
    scopes: tuple[str, ...]

    @classmethod
    def read(cls, root: Path = ROOT) -> "Front":
        """From README.md."""
        _, text, _ = (root / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        card = yaml.safe_load(text)
        assert card["sdk"] == "gradio"
        scopes = tuple(card.get("hf_oauth_scopes", ()))
        return cls(
            str(card["python_version"]), str(card["sdk_version"]), card["app_file"],
            bool(card.get("hf_oauth")), scopes,
        )  # fmt: skip


def space(place: Place, front: Front, hub: Hub, port: int) -> dict[str, str]:
    """The environment of a Space. Only the last three names are the rehearsal's own."""
    scopes = " ".join(("openid", "profile", *front.scopes))
    return {
        "HOME": str(place.home),
        "PATH": f"{place.venv}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(place.app),
        "PYTHONUNBUFFERED": "1",
        "GRADIO_ALLOW_FLAGGING": "never",
        "GRADIO_NUM_PORTS": "1",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_THEME": "huggingface",
        "SYSTEM": "spaces",
        "ACCELERATOR": "none",
        "CPU_CORES": "2",
        "MEMORY": "16Gi",
        "SPACE_AUTHOR_NAME": OWNER,
        "SPACE_REPO_NAME": NAME,
        "SPACE_TITLE": "SST Studio",
        "SPACE_ID": f"{OWNER}/{NAME}",
        "SPACE_HOST": HOST,
        "OAUTH_CLIENT_ID": "an-id",
        "OAUTH_CLIENT_SECRET": "a-secret",
        "OAUTH_SCOPES": scopes,
        "OPENID_PROVIDER_URL": hub.url,
        "HF_TOKEN": "the-owners",  # as an owner may have set it; no visitor may use it
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "GRADIO_SERVER_PORT": str(port),
    }


class Log:
    """The lines of a rehearsal, with the seconds since its beginning."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print one."""
        seconds = time.monotonic() - self._begun
        print(f"{seconds:6.0f} s  {' '.join(line.split())}", flush=True)


def interpreter(version: str, named: str | None) -> str:
    """A Python of this version.

    Raises:
        SystemExit: there is none.
    """
    for name in (named, f"python{version}", sys.executable):
        command = [name or "", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            continue
        if name and found == version:
            return name
    raise SystemExit(f"no Python {version} is here; say where one is: --python PATH")


def installed(place: Place, *arguments: str) -> str:
    """Install into the environment; the versions that matter."""
    quiet = ["--quiet", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command = [str(place.python), "-m", "pip", "install", *quiet, *arguments]
    subprocess.run(command, cwd=place.app, check=True)
    return versions(place)


def versions(place: Place) -> str:
    """What is installed: how many packages, and which versions of those that matter."""
    pip = [str(place.python), "-m", "pip"]
    subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
    listed = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout
    lines = listed.splitlines()
    kept = [line for line in lines if re.match(r"(torch|transformers|gradio|spaces)==", line)]
    return f"{len(lines)} packages, {', '.join(kept)}; pip check finds nothing wrong"


def made(place: Place, front: Front, python: str) -> Iterator[str]:
    """The environment as a Space makes it."""
    yield f"README.md: Python {front.python}, Gradio {front.gradio}, {front.app}"
    subprocess.run([python, "-m", "venv", "--clear", str(place.venv)], check=True)
    found = installed(place, "--requirement", "requirements.txt")
    yield f"requirements.txt alone: {found}"
    more = f"gradio[oauth]=={front.gradio}" if front.oauth else f"gradio=={front.gradio}"
    yield f"what a Space adds: {installed(place, more, *ADDED)}"


def visited(running: sandbox.Running, port: int, hub: Hub, folder: Path) -> Iterator[str]:
    """The page through a proxy with TLS, under the Space's name, in a browser."""
    with ExitStack() as stack:
        outside = stack.enter_context(proxied(port, certificate=certified(folder, HOST)))
        playwright = stack.enter_context(sync_playwright())
        rules = [f"--host-resolver-rules=MAP {HOST}:443 127.0.0.1:{outside}"]
        rules += ["--ignore-certificate-errors"]  # of downloads too, unlike a context's option
        browser = playwright.chromium.launch(
            executable_path=executable(), args=[*ARGUMENTS, *rules], timeout=MILLISECONDS
        )
        expect.set_options(timeout=MILLISECONDS)
        with visit.pictured(browser, folder):
            yield from seen(browser, hub)
        browser.close()
    yield from visit.is_calm(running.log.read_text())


def seen(browser, hub: Hub) -> Iterator[str]:
    """Everything a visitor does."""
    there = visit.Visit(browser, f"https://{HOST}")
    page = there.opened()
    yield from visit.works(page)
    yield from visit.is_guarded(page)
    yield from visit.opens_links(there)
    yield from visit.signs_in(page, hub, VISITOR)


def free_port(wanted: int = 7860) -> int:
    """The port a Space has, or another one where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as door:
            try:
                door.bind(("0.0.0.0", port))
            except OSError:
                continue
            return door.getsockname()[1]
    raise SystemExit("no port is free")


def rehearse(place: Place, python: str | None, again: bool, zero: bool, log: Log) -> None:
    """All of it; AssertionError, RuntimeError or CalledProcessError where something is wrong."""
    front = Front.read()
    log(f"{sandbox.copied(ROOT, place.app)} files copied")
    if not again:
        for line in made(place, front, interpreter(front.python, python)):
            log(line)
    sandbox.settle(place)
    with standin() as hub, device.lender() as lent:
        hub.accounts = {"the-owners": OWNER, "the-visitors": VISITOR}
        hub.visitor = "the-visitors"
        port = free_port()
        env = space(place, front, hub, port) | (device.zero(lent) if zero else {})
        log(sandbox.told(place, env))
        command = [str(place.python), *(["-c", device.PRELUDE] if zero else []), front.app]
        with sandbox.running(place, command, env, port, SECONDS) as running:
            log(f"`python {front.app}` answers at port {port}")
            for line in visited(running, port, hub, place.root):
                log(line)
            log(f"it holds {running.memory() / 2**30:.1f} GB of a Space's 16")
        if zero:
            assert (lent.failed, lent.out) == (0, {})
            assert lent.seconds, "no GPU was asked for"
            log(
                f"ZeroGPU: {len(lent.seconds)} calls, of {min(lent.seconds)} to "
                f"{max(lent.seconds)} s at most, in {len(lent.forks)} forks; none failed"
            )


def main() -> int:
    """Rehearse; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="the interpreter to make the environment with")
    parser.add_argument("--folder", type=Path, help="where; made new below /var/tmp unless given")
    parser.add_argument("--again", action="store_true", help="with the folder's environment")
    parser.add_argument("--zero", action="store_true", help="on ZeroGPU (`device.py`)")
    chosen = parser.parse_args()
    root = chosen.folder or Path(tempfile.mkdtemp(prefix="space-", dir="/var/tmp"))
    root.mkdir(parents=True, exist_ok=True)
    log = Log()
    log(f"rehearsing in {root}")
    rehearse(Place(root.resolve()), chosen.python, chosen.again, chosen.zero, log)
    log("all of it works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
