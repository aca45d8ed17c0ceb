"""SST Studio: study and change how refusal lives in an open-weight language model."""

__version__ = "0.1.0"
