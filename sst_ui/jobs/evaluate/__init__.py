"""Evaluating base and edited model on prompt sets."""
