"""The terminal: how jobs look there, and commands with many options of their own."""

from sst_ui.cli.progress_bars import live, with_bar

__all__ = ["live", "with_bar"]
