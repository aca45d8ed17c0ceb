"""Model organisms: small models that learn to comply, then to refuse, each in its own way.

They are made to try edits on, so nothing that makes them knows of edits: no direction, no ablation
and no measurement of either is in the loop (a contract in pyproject.toml).
"""
