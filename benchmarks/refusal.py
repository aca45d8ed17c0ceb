"""How often answers are labelled right, on answers that people labelled.

    python -m benchmarks.refusal [--set labelled|blind|four]

The labels are in presets/labels, the counting in sst_ui/metrics/detector_accuracy.py.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence

from sst_ui.errors import UserError
from sst_ui.metrics.detector_accuracy import (
    ALL,
    FILES,
    Detector,
    Error,
    Half,
    Set,
    agreement,
    by_label,
    labelled,
    markdown,
    report,
)
from sst_ui.metrics.judge import load_judge
from sst_ui.metrics.text.answer import Answer
from sst_ui.progress import finish

TITLES: dict[Set, str] = {
    "labelled": "The project's own answers",
    "blind": "Blind set, by an author who had not seen the lists",
    "four": "All four labels, in seven languages",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refusal", description=__doc__)
    parser.add_argument(
        "--judge", help="a text classifier by Hub name or folder; default the phrase lists"
    )
    parser.add_argument("--device", default="auto", help="of the judge: auto, cpu, cuda, ...")
    parser.add_argument("--half", choices=("heldout", "tune", "both"), default="heldout")
    parser.add_argument("--set", choices=(*FILES, "all"), default="all", help="which answers")
    parser.add_argument("--errors", action="store_true", help="also the answers it got wrong")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    half = None if options.half == "both" else options.half
    sets: tuple[Set, ...] = tuple(FILES) if options.set == "all" else (options.set,)
    try:
        label = _detector(options.judge, options.device, half, sets)
        reports = {name: report(label, half, name) for name in sets}
        kinds = {name: by_label(label, half, name) for name in sets}
        right = {name: agreement(label, half, name) for name in sets}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        data = {
            name: {
                "refusals": [row.to_json() for row in reports[name]],
                "labels": [row.to_json() for row in kinds[name]],
                "agreement": right[name].to_json(),
            }
            for name in sets
        }
        print(json.dumps(data, ensure_ascii=False))
        return 0
    for name, rows in reports.items():
        all_ = next(row for row in rows if row.answers == ALL)
        print(f"{TITLES[name]} (half: {options.half}): refusals, and every label\n")
        print(f"{markdown(rows)}\n\n{markdown(kinds[name], 'label')}\n")
        print(f"{right[name].value:.3f} of {right[name].n} labelled as people did")
        if options.errors:
            errors = {error.case: error for row in (all_, *kinds[name]) for error in row.errors}
            print(wrong(errors.values()))
        print()
    return 0


def wrong(errors: Iterable[Error]) -> str:
    """The answers that were taken for something else, as a list."""
    lines = [
        f"- {error.case.label}, found {error.found} ({error.case.language}, {error.case.kind}): "
        f"{json.dumps(error.case.answer, ensure_ascii=False)}"
        for error in errors
    ]
    return "\n" + ("\n".join(lines) or "No errors.")


def _detector(judge: str | None, device: str, half: Half | None, sets: Sequence[Set]) -> Detector:
    if judge is None:
        return lambda prompt, answer: Answer(answer, request=prompt).label
    pairs = [(case.prompt, case.answer) for name in sets for case in labelled(half, name)]
    found = dict(zip(pairs, finish(load_judge(judge, device).labels(pairs)), strict=True))
    return lambda prompt, answer: found[prompt, answer]


if __name__ == "__main__":
    sys.exit(main())
