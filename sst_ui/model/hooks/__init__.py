"""Edits while the model computes."""
