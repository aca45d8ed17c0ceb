"""The tables of docs/results.md, for the demo or any other model.

    python -m benchmarks.sweep

The tables themselves are made in sst_ui/jobs/results_table.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from sst_ui import schema
from sst_ui.errors import UserError
from sst_ui.jobs.results_table import Row, markdown, overview, settings, sweep, transposed
from sst_ui.metrics.registry import METRICS
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation, ModelSpec

TITLES = {
    "profiles": "Profiles and strengths: the filter along four directions",
    "plain": "Profiles and strengths: plain ablation along one direction",
    "negative": "Negative strength",
    "control": "Random directions",
}
GROUPS = ("overview", "base", *TITLES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--model", default="demo", help="demo, a folder, or a Hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--preset", default="standard", choices=schema.setting("evaluation.preset").choices
    )
    parser.add_argument("--samples", type=int, help="prompts of each set; default: the preset's")
    parser.add_argument("--max-new-tokens", type=int, help="default: the preset's")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="tables (what happens anyway)")
    form.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        host = finish(load(ModelSpec(id=options.model, device=options.device)))
        evaluation = Evaluation(
            preset=options.preset, samples=options.samples, max_new_tokens=options.max_new_tokens
        )
        rows = []
        if "overview" in options.groups:
            job = sweep(host, overview(), evaluation, METRICS.names())
            rows += finish(job, _Told(len(overview())))
        if chosen := [setting for setting in settings() if setting.group in options.groups]:
            rows += finish(sweep(host, chosen, evaluation), _Told(len(chosen)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps([row.to_json() for row in rows]) if options.json else tables(rows))
    return 0


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table a group, the base first in each."""
    base = [row for row in rows if row.group == "base"]
    parts = []
    if members := [row for row in rows if row.group == "overview"]:
        parts.append(f"### Everything at a glance\n\n{transposed(members)}")
    for group, title in TITLES.items():
        if members := [row for row in rows if row.group == group]:
            parts.append(f"### {title}\n\n{markdown([*base, *members])}")
    return "\n\n".join(parts or [markdown(base)])


class _Told:
    """Says on stderr which row is done and how long the rest will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def __call__(self, step: object) -> None:
        if isinstance(step, Row):
            self.done += 1
            left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
            place = f"{self.done}/{self.total}"
            print(f"{place}  {step.name}  (about {left:.0f} s left)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
