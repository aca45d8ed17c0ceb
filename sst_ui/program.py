"""What the program is called where a text names a command: as it was started."""

import sys
from pathlib import Path


def program() -> str:
    """`sst-studio` where it was started as that, else `python -m sst_ui`."""
    return "sst-studio" if Path(sys.argv[0]).stem == "sst-studio" else "python -m sst_ui"
