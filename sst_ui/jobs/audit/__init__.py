"""What was done to a model: two checkpoints side by side."""
