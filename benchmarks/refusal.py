"""How often the detectors tell refusals from other answers, on answers that people labelled.

    python -m benchmarks.refusal [--set labelled|blind]

The labels are in presets/labels, the counting in sst_ui/metrics/detector_accuracy.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from sst_ui.errors import UserError
from sst_ui.metrics.detector_accuracy import (
    ALL,
    FILES,
    Detector,
    Half,
    Quality,
    Set,
    labelled,
    markdown,
    report,
)
from sst_ui.metrics.judge import load_judge
from sst_ui.metrics.text import refusal_phrases
from sst_ui.progress import finish

TITLES: dict[Set, str] = {
    "labelled": "The project's own answers",
    "blind": "Blind set, by an author who had not seen the lists",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refusal", description=__doc__)
    parser.add_argument(
        "--judge", help="a text classifier by Hub name or folder; default the phrase lists"
    )
    parser.add_argument("--device", default="auto", help="of the judge: auto, cpu, cuda, ...")
    parser.add_argument("--half", choices=("heldout", "tune", "both"), default="heldout")
    parser.add_argument("--set", choices=(*FILES, "both"), default="both", help="which answers")
    parser.add_argument("--errors", action="store_true", help="also the answers it got wrong")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    half = None if options.half == "both" else options.half
    sets: tuple[Set, ...] = tuple(FILES) if options.set == "both" else (options.set,)
    try:
        label = _detector(options.judge, options.device, half, sets)
        reports = {name: report(label, half, name) for name in sets}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        data = {name: [row.to_json() for row in rows] for name, rows in reports.items()}
        print(json.dumps(data, ensure_ascii=False))
        return 0
    for name, rows in reports.items():
        all_ = next(row for row in rows if row.language == ALL)
        print(f"{TITLES[name]} (half: {options.half})\n")
        print(markdown(rows) + (wrong(all_) if options.errors else "") + "\n")
    return 0


def wrong(row: Quality) -> str:
    """The answers that were taken for something else, as a list."""
    lines = [
        f"- {error.case.label}, found {error.found} ({error.case.language}, {error.case.kind}): "
        f"{json.dumps(error.case.answer, ensure_ascii=False)}"
        for error in row.errors
    ]
    return "\n\n" + ("\n".join(lines) or "No errors.")


def _detector(judge: str | None, device: str, half: Half | None, sets: Sequence[Set]) -> Detector:
    if judge is None:
        return lambda prompt, answer: refusal_phrases.label(answer)
    pairs = [(case.prompt, case.answer) for name in sets for case in labelled(half, name)]
    found = dict(zip(pairs, finish(load_judge(judge, device).labels(pairs)), strict=True))
    return lambda prompt, answer: found[prompt, answer]


if __name__ == "__main__":
    sys.exit(main())
