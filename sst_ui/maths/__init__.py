"""The mathematics: no models, no files, no page."""

from sst_ui.quick_import import quick_import

with quick_import():
    import torch  # noqa: F401
