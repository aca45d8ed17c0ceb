"""The screen. Imports the lab; nothing below imports it."""

from sst_ui.ui.engine import Engine
from sst_ui.ui.studio import build
from sst_ui.ui.theme import launch_options

__all__ = ["Engine", "build", "launch_options"]
