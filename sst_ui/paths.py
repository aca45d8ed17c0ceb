"""Where things are stored: shipped data, caches, outputs.

A checkout has presets/ and assets/ beside the package; a wheel has them in it (see setup.py).
"""

import os
import sys
import tempfile
from pathlib import Path

from sst_ui.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # a checkout, or what Python is installed into: `import sst_ui` works from it
INSTALLED = (PACKAGE / "_data").is_dir()
_DATA = PACKAGE / "_data" if INSTALLED else ROOT
PRESETS = _DATA / "presets"
ASSETS = _DATA / "assets"
DEMO = ASSETS / "demo"


def cache_dir() -> Path:
    """Folder for what can be computed again (`SST_CACHE`, else `~/.cache/sst-studio`)."""
    if own := os.environ.get("SST_CACHE"):
        return Path(own)
    try:
        return Path.home() / ".cache" / "sst-studio"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"sst-studio-{os.getuid()}"


def data_dir() -> Path:
    """Folder for what must not be lost, such as the run history (`SST_HOME`, else the platform's).

    `~/.local/share/sst-studio` on Linux (`XDG_DATA_HOME` counts), `~/Library/Application Support`
    and `%LOCALAPPDATA%` elsewhere.

    Raises:
        UserError: the user has no home, and none of them is set.
    """
    try:
        return _data_dir()
    except RuntimeError as error:
        raise UserError("this user has no home folder; set SST_HOME to one.") from error


def _data_dir() -> Path:
    if own := os.environ.get("SST_HOME"):
        return Path(own)
    if sys.platform == "darwin":
        place = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        place = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        place = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return place / "sst-studio"


def directions_dir() -> Path:
    """Folder of the directions that the page has saved, named by what is in them."""
    return data_dir() / "directions"


def output_dir() -> Path:
    """Folder for what the user saves (`SST_OUTPUTS`, else `outputs` in the working directory)."""
    return Path(os.environ.get("SST_OUTPUTS") or Path.cwd() / "outputs")


def metrics_dir() -> Path:
    """Folder with metrics of one's own (`SST_METRICS`, else `my_metrics`).

    `my_metrics` lies beside app.py; an installed studio has it in `data_dir`, never in the working
    directory, whose files nobody chose to run.
    """
    if own := os.environ.get("SST_METRICS"):
        return Path(own)
    return (data_dir() if INSTALLED else ROOT) / "my_metrics"
