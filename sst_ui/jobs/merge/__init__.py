"""Merging a safety adapter with a utility adapter, and what it will cost."""
