"""Where things lie: shipped data, caches, outputs. Knows folders, not what is in them."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "presets"
ASSETS = ROOT / "assets"
DEMO = ASSETS / "demo"


def cache_dir() -> Path:
    """Folder for what can be computed again (`SST_CACHE`, else `~/.cache/sst-studio`)."""
    return Path(os.environ.get("SST_CACHE") or Path.home() / ".cache" / "sst-studio")


def output_dir() -> Path:
    """Folder for what the user saves (`SST_OUTPUTS`, else `outputs` in the working directory)."""
    return Path(os.environ.get("SST_OUTPUTS") or Path.cwd() / "outputs")


def metrics_dir() -> Path:
    """Folder with metrics of one's own (`SST_METRICS`, else `my_metrics` beside app.py)."""
    return Path(os.environ.get("SST_METRICS") or ROOT / "my_metrics")
