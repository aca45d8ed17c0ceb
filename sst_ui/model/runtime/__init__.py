"""The resident model and the lock around it."""
