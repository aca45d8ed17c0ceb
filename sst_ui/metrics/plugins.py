"""The user's own metrics: every Python file in a folder, run once when the metrics are registered.

A file runs with all rights of the studio, so only the folder that the user chose is read (see
`paths.metrics_dir`).
"""

import importlib.util
import logging
import traceback
from pathlib import Path

from sst_ui.metrics.registry import METRICS

log = logging.getLogger(__name__)
PROBLEMS: list[str] = []  # one line for each file that could not be read


def load(folder: Path) -> None:
    """Run every `*.py` of a folder, in the order of their names.

    A file that fails is left out and noted in `PROBLEMS`; the metrics of the others work.
    """
    for path in sorted(folder.glob("*.py")):
        before = METRICS.names()
        try:
            spec = importlib.util.spec_from_file_location(f"sst_own_metrics.{path.stem}", path)
            assert spec is not None  # nor is its loader, for any *.py
            assert spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except Exception as error:
            PROBLEMS.append(f"{path}{_line(error, path)}: {type(error).__name__}: {error}")
        else:
            if METRICS.names() == before:
                PROBLEMS.append(f"{path} adds no new metric; decorate a function with @metric(...)")
    for problem in PROBLEMS:
        log.warning("a metric of your own is not available: %s", problem)


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
