"""Searching for good settings, on one machine or a Ray cluster."""
