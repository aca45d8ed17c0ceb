"""Edits in the files of a model."""
