"""Runs that were kept, with their numbers."""
