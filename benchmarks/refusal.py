"""How often refusals are told from other answers, on answers that people labelled.

    python -m benchmarks.refusal

Knows arguments and output; what is right and wrong is in presets/labels, and the counting in
sst_ui/metrics/detector.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from sst_ui.errors import UserError
from sst_ui.metrics import refusal
from sst_ui.metrics.detector import Detector, Half, Quality, labelled, markdown, report
from sst_ui.metrics.judge import load_judge
from sst_ui.progress import finish


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refusal", description=__doc__)
    parser.add_argument(
        "--judge", help="a text classifier by Hub name or folder; default the phrase lists"
    )
    parser.add_argument("--device", default="auto", help="of the judge: auto, cpu, cuda, ...")
    parser.add_argument("--half", choices=("heldout", "tune", "both"), default="heldout")
    parser.add_argument("--errors", action="store_true", help="also the answers it got wrong")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    half = None if options.half == "both" else options.half
    try:
        rows = report(_detector(options.judge, options.device, half), half)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([row.to_json() for row in rows], ensure_ascii=False))
    else:
        print(markdown(rows) + (wrong(rows[-1]) if options.errors else ""))
    return 0


def wrong(row: Quality) -> str:
    """The answers that were taken for something else, as a list."""
    lines = [
        f"- {error.case.label}, found {error.found} ({error.case.language}, {error.case.kind}): "
        f"{json.dumps(error.case.answer, ensure_ascii=False)}"
        for error in row.errors
    ]
    return "\n\n" + ("\n".join(lines) or "No errors.")


def _detector(judge: str | None, device: str, half: Half | None) -> Detector:
    if judge is None:
        return lambda prompt, answer: refusal.label(answer)
    pairs = [(case.prompt, case.answer) for case in labelled(half)]
    found = dict(zip(pairs, finish(load_judge(judge, device).labels(pairs)), strict=True))
    return lambda prompt, answer: found[prompt, answer]


if __name__ == "__main__":
    sys.exit(main())
