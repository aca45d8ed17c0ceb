"""Where things are stored: shipped data, caches, outputs."""

import os
import sys
import tempfile
from pathlib import Path

from sst_ui.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "presets"
ASSETS = ROOT / "assets"
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


def output_dir() -> Path:
    """Folder for what the user saves (`SST_OUTPUTS`, else `outputs` in the working directory)."""
    return Path(os.environ.get("SST_OUTPUTS") or Path.cwd() / "outputs")


def metrics_dir() -> Path:
    """Folder with metrics of one's own (`SST_METRICS`, else `my_metrics` beside app.py)."""
    return Path(os.environ.get("SST_METRICS") or ROOT / "my_metrics")
