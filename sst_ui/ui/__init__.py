"""The page. Imports the jobs; nothing below imports it."""

from sst_ui.quick_import import quick_import

with quick_import():
    from sst_ui.ui.page import build, launch_options
    from sst_ui.ui.services.engine import Engine

__all__ = ["Engine", "build", "launch_options"]
