"""Writing an edited model in every format, and checking what was written."""
