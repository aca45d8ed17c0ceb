"""Which modules a model is made of, by role."""
