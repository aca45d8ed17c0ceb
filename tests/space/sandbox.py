"""Where a rehearsal happens: a fresh environment, a copy nobody may write, a process shut in.

A process is shut in as far as this machine allows: in a mount namespace in which nothing but its
home, its data and /tmp can be written, as a user who is not root, with a limit of its memory. What
holds and what does not is found out inside and said. Knows nothing of the studio.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

USER = 1000  # as a Space has it, and most container files
MEMORY = 16 * 2**30  # bytes; a Space's
THREADS = ("OMP_NUM_THREADS",)  # passed on: how much of a machine with other work one may take
SHUT = """
set -e
mount --bind "$1" "$1"
mount --bind "$2" /tmp
findmnt --raw --noheadings --output TARGET | while read -r at; do
  case "$at" in
    /proc*|/sys*|/dev*|/tmp|"$1") ;;
    *) mount -o remount,bind,ro "$at" ;;
  esac
done
shift 2
exec "$@"
"""
LOOK = """
import os, sys
def may(folder):
    try:
        path = os.path.join(folder, "probe")
        open(path, "w").close()
        os.remove(path)
        return True
    except OSError:
        return False
print(os.getuid(), *(int(may(folder)) for folder in sys.argv[1:]))
"""


@dataclass(frozen=True)
class Place:
    """A rehearsal's folder: the environment, the copy, and the two places that may be written."""

    root: Path

    @property
    def venv(self) -> Path:
        """The fresh environment."""
        return self.root / "venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def app(self) -> Path:
        """The copy of the repository."""
        return self.root / "app"

    @property
    def home(self) -> Path:
        """The home of who runs it."""
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        """What it sees as /tmp."""
        return self.root / "tmp"


def copied(source: Path, target: Path, allowed: Sequence[str] = ()) -> int:
    """Copy what is under version control; the number of files.

    Args:
        allowed: top-level names; everything unless given.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=source, capture_output=True, check=True
    ).stdout
    names = [name for name in listed.decode().split("\0") if name]
    names = [name for name in names if not allowed or name.split("/")[0] in allowed]
    shutil.rmtree(target, ignore_errors=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    return len(names)


def settle(place: Place) -> None:
    """Make home and temporary folder anew, for the user of the process; nobody writes the copy."""
    place.root.chmod(0o755)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(place.app)], check=True)
    for folder in (place.home, place.temporary):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        folder.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(folder, USER, USER)


def confinement() -> list[str]:
    """The beginning of a command that shuts the rest of it in; empty where that cannot be had."""
    root = os.geteuid() == 0
    unshare = ["unshare", "--mount", "--propagation", "private"]
    unshare = unshare if root else [*unshare, "--user", "--map-root-user"]
    if not all(shutil.which(name) for name in ("unshare", "findmnt", "setpriv")):
        return []
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        return []
    return [*unshare, "sh", "-c", SHUT, "sh"]


def shut_in(place: Place, command: Sequence[str]) -> list[str]:
    """A command as it runs in there."""
    lower = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
    lower = lower if os.geteuid() == 0 and shutil.which("setpriv") else []
    shut = confinement()
    folders = [str(place.home), str(place.temporary)] if shut else []
    return [*shut, *folders, *lower, *command]


def held(place: Place, env: Mapping[str, str]) -> tuple[int, dict[str, bool]]:
    """Who a process is in there, and which folders it may write."""
    folders = ["/", str(place.root), str(place.app), str(place.venv), str(place.home), "/tmp"]
    command = shut_in(place, [str(place.python), "-c", LOOK, *folders])
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{place.python} does not run in there: {done.stderr.strip()[-300:]} Is its "
            "interpreter where everybody may read it? Give another one with --python."
        )
    user, *found = map(int, done.stdout.split())
    return user, dict(zip(folders, map(bool, found), strict=True))


def told(place: Place, env: Mapping[str, str]) -> str:
    """How far a process is shut in, in a line; AssertionError where it is not at all."""
    user, may = held(place, env)
    locked = [folder for folder, writes in may.items() if not writes]
    assert (may[str(place.home)], may["/tmp"]) == (True, True), may
    assert user != 0
    assert str(place.app) in locked, may
    how = "read-only mounts" if confinement() else "no mount namespace here: by mode only"
    return f"user {user}; {how}; only {place.home} and /tmp may be written, not {', '.join(locked)}"


class Running:
    """A started program: its address, its log, and how much memory it came to."""

    def __init__(self, child: subprocess.Popen, address: str, log: Path) -> None:
        self.child, self.address, self.log = child, address, log

    def memory(self) -> int:
        """Bytes that it and its children hold now, shared ones counted once."""
        mine = psutil.Process(self.child.pid)
        total = 0
        for one in (mine, *mine.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
        return total


@contextlib.contextmanager
def running(
    place: Place, command: Sequence[str], env: Mapping[str, str], port: int, patience: float
) -> Iterator[Running]:
    """A program shut in, from its first answer on; ended at the end.

    Raises:
        RuntimeError: it ended, or did not answer in so many seconds; the message has its log.
    """
    address, path = f"http://127.0.0.1:{port}", place.root / "log.txt"
    threads = {name: os.environ[name] for name in THREADS if name in os.environ}
    limit = (MEMORY, MEMORY)
    with path.open("w") as log:
        child = subprocess.Popen(
            shut_in(place, command), cwd=place.app, env={**threads, **env}, stdout=log, stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
        )  # fmt: skip
        try:
            end = time.monotonic() + patience
            answered = False
            while not answered:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(address, timeout=5).close()
                    answered = True
                if child.poll() is not None or time.monotonic() > end:  # or somebody else answered
                    raise RuntimeError(f"it does not answer:\n{path.read_text()[-3000:]}")
                time.sleep(0.3)
            yield Running(child, address, path)
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
