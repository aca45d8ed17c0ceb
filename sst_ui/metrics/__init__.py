"""Metrics: a registry and one small file a family. Importing this package registers all of them."""

from importlib import import_module

FAMILIES = ("safety", "drift", "knowledge", "quality")  # in the order of the screen

for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")
