"""Metrics: a registry and one small file per family. Importing this package registers all of them,
and those of the user's own folder."""

from contextlib import suppress
from importlib import import_module

from sst_ui.errors import UserError
from sst_ui.metrics import plugins
from sst_ui.paths import metrics_dir

FAMILIES = ("safety", "divergence", "knowledge", "quality")  # in the order of the screen

for _family in FAMILIES:
    import_module(f"{__name__}.families.{_family}")
with suppress(UserError):  # no home folder: nothing of one's own
    plugins.load(metrics_dir())
