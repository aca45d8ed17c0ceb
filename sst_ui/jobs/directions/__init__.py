"""Measuring refusal directions."""
