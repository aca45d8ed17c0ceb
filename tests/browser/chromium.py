"""Which Chromium the browser tests drive, and how a fresh machine gets one.

`python -m tests.browser.chromium` installs one where none is found: Debian's package where apt is
there, else Playwright's own download. Knows nothing of the studio.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# The one without a screen comes first: it has no window of its own to draw, which costs a fifth.
NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
MISSING = (
    "The browser tests need a Chromium and found none. Install one with "
    "'apt-get install chromium' or 'python -m playwright install chromium', "
    "or set CHROMIUM to the path of one."
)


def find() -> str | None:
    """Path of a Chromium: $CHROMIUM, one on PATH, or Playwright's own; None without any."""
    if named := os.environ.get("CHROMIUM"):
        return named if Path(named).is_file() else None
    for name in NAMES:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def executable() -> str:
    """Path of a Chromium for `playwright.chromium.launch(executable_path=...)`.

    Raises:
        RuntimeError: there is none; the message says how to get one.
    """
    path = find()
    if path is None:
        raise RuntimeError(MISSING)
    return path


def install() -> bool:
    """Make sure there is a Chromium; True when there is one afterwards."""
    if find():
        return True
    for commands in (*map(_debian, NAMES[:2]), _playwright()):
        if commands and all(subprocess.run(c).returncode == 0 for c in commands) and find():
            return True
    print(MISSING, file=sys.stderr)
    return False


def _debian(package: str) -> list[list[str]]:
    """The apt commands for it, with sudo unless we are root; empty where they cannot work."""
    if not shutil.which("apt-get"):
        return []
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not shutil.which("sudo"):
        return []
    quiet = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    return [[*quiet, "update"], [*quiet, "install", "-y", "--no-install-recommends", package]]


def _playwright() -> list[list[str]]:
    return [[sys.executable, "-m", "playwright", "install", "chromium"]]


if __name__ == "__main__":
    sys.exit(0 if install() else 1)
