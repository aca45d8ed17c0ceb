"""llama.cpp for the tests: `python -m tests.llama.install` puts node-llama-cpp beside this file.

Only packages of the registry: no script of theirs runs, nothing is built or fetched from elsewhere.
Of its binaries (the others are for graphics cards, 700 MB) only the one for this processor comes.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BINARY = (
    "({'linux-x64': 'linux-x64', 'linux-arm64': 'linux-arm64', 'darwin-x64': 'mac-x64', "
    "'darwin-arm64': 'mac-arm64-metal', 'win32-x64': 'win-x64', 'win32-arm64': 'win-arm64'})"
    "[process.platform + '-' + process.arch] ?? ''"
)
QUIETLY = ("--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error")
WANTED = json.loads((HERE / "package.json").read_text())["dependencies"]["node-llama-cpp"]


def missing() -> str:
    """What stands in the way of asking llama.cpp, or ''."""
    if shutil.which("node") is None:
        return "node (20 or newer) is not installed"
    if not (HERE / "node_modules" / "@node-llama-cpp").is_dir():
        return "node-llama-cpp is not installed: python -m tests.llama.install"
    return ""


def installed() -> bool:
    """Whether the wanted version is there."""
    found = HERE / "node_modules" / "node-llama-cpp" / "package.json"
    return not missing() and json.loads(found.read_text())["version"] == WANTED


def main() -> int:
    """Install what is not there; 1 and a sentence where that cannot be."""
    if installed():
        return 0
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        print(
            "npm is not here, so tests against llama.cpp are skipped; they want node 20 or newer."
        )
        return 1
    binary = subprocess.run([node, "-p", BINARY], text=True, capture_output=True).stdout.strip()
    if not binary:
        print("node-llama-cpp has no binary for this machine, so tests against it are skipped.")
        return 1
    package = f"@node-llama-cpp/{binary}@{WANTED}"
    for command in (["ci"], ["install", "--no-save", package]):
        done = subprocess.run([npm, *command, *QUIETLY], cwd=HERE, text=True, capture_output=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            print(f"npm {command[0]} failed, so tests against llama.cpp are skipped: {said[0]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
