"""The metrics themselves, one file per family."""
