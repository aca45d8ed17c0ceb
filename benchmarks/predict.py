"""Times *Predict* and the methods' table on the demo: the first numbers, and all of them.

    python -m benchmarks.predict [--table] [--whole] [--threads N] [--json]

Seconds of the processor, which what else the machine does changes least, and of the clock; the
cache is a new folder, so that nothing is known.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from sst_ui.progress import finish
from sst_ui.recipe import Evaluation, Merge
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.merge_forecasts import First, Line
from sst_ui.ui.state import merge_form

Times = dict[str, tuple[float, float]]  # what was there -> seconds of the processor, of the clock


class Watch:
    """When what was there, since it was made."""

    def __init__(self) -> None:
        self.times: Times = {}
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def note(self, what: str) -> None:
        cpu, wall = time.process_time() - self._cpu, time.monotonic() - self._wall
        self.times.setdefault(what, (cpu, wall))


def predict(engine: Engine, spec: Merge, whole: bool) -> Times:
    """Until a forecast is drawn: the first one, and with `whole` that of all prompts."""
    watch, key = Watch(), engine.loaded.key
    for step in engine.merges.predict(key, spec):
        if isinstance(step, First):
            engine.merges.forecast(key, spec)
            watch.note("first forecast")
            if not whole:
                return watch.times
    engine.merges.forecast(key, spec)
    watch.note("forecast of all prompts")
    return watch.times


def table(engine: Engine, spec: Merge, evaluation: Evaluation, whole: bool) -> Times:
    """Until all rows have their first numbers, and with `whole` those of all prompts."""
    watch, begun = Watch(), False
    for step in engine.merges.compare(engine.loaded.key, spec, evaluation):
        begun = begun or (isinstance(step, Line) and step.first)
        if begun and not isinstance(step, Line):  # the rows of a batch come together
            watch.note("first numbers of every method")
            if not whole:
                return watch.times
    watch.note("table of all prompts")
    return watch.times


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--table", action="store_true", help="the methods' table, too")
    parser.add_argument("--whole", action="store_true", help="not the first numbers alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SST_CACHE"] = folder
        engine = Engine()
        finish(engine.load(engine.spec))
        spec, found = merge_form.first(), {}
        found["predict"] = predict(engine, spec, options.whole)
        if options.table:
            found["table"] = table(engine, spec, Evaluation(preset="standard"), options.whole)
    if options.json:
        print(json.dumps(found))
        return 0
    print("| | what is there | processor | clock |\n|---|---|---|---|")
    for part, times in found.items():
        for what, (cpu, wall) in times.items():
            print(f"| {part} | {what} | {cpu:.0f} s | {wall:.0f} s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
