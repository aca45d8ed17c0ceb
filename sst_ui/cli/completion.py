"""The command `completion`: a script that registers the program with bash, zsh or fish.

The shell asks the program itself for its words, through argcomplete. In a checkout the script
defines `sst_ui`, a short name for `python -m sst_ui`, and completes that.
"""

import argparse
import os
import shlex
import sys

from sst_ui.program import program

SHELLS = ("bash", "zsh", "fish")
POSIX = 'sst_ui() {{ {python} -m sst_ui "$@"; }}\n'
FUNCTIONS = {
    "bash": POSIX,
    "zsh": POSIX,
    "fish": "function sst_ui; {python} -m sst_ui $argv; end\n",
}


def options(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=SHELLS)


def script(shell: str) -> str:
    """The script of a shell, to be read by it at its start."""
    import argcomplete

    if program() == "sst-studio":
        return argcomplete.shellcode(["sst-studio"], shell=shell)
    function = FUNCTIONS[shell].format(python=shlex.quote(sys.executable))
    return function + argcomplete.shellcode(["sst_ui"], shell=shell)


def asked() -> bool:
    """Whether a shell runs the program only to learn what may follow."""
    return "_ARGCOMPLETE" in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may follow, and end the program, if that is what it was run for."""
    if asked():
        import argcomplete

        argcomplete.autocomplete(parser)
