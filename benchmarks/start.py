"""How long the program takes to start and to end, with and without `sst_ui.quick_import`.

    python -m benchmarks.start --rounds 5

Processor seconds of a process that imports the page, or what a command with a model imports, and
ends. Both ways take turns, so that a slow moment of the machine hits both; medians are reported.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

from sst_ui.paths import ROOT

WHAT = {"the page": "sst_ui.ui", "a command with a model": "sst_ui.model.runtime.host"}
PLAIN = "import contextlib, sst_ui.quick_import as q; q.quick_import = contextlib.nullcontext; "


def seconds(code: str) -> float:
    """Processor seconds of a fresh process that runs this."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("| what is started | plain, s | quick, s | ratio |\n|---|---|---|---|")
    for name, module in WHAT.items():
        code = f"import {module}"
        pairs = [(seconds(PLAIN + code), seconds(code)) for _ in range(rounds + 1)][1:]
        plain, quick = (median(pair[way] for pair in pairs) for way in (0, 1))
        print(f"| {name} | {plain:.2f} | {quick:.2f} | {quick / plain:.2f} |")


if __name__ == "__main__":
    main()
