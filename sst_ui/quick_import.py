"""Importing large libraries without looking for garbage on the way.

PyTorch, transformers and Gradio make a million objects that stay. Python's collector goes over them
again and again while they come, and once more when the program ends: two fifths of the time that
the page needs to start and to end (`python -m benchmarks.start`).
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_import() -> Iterator[None]:
    """Import inside of it. What is there at its end is never looked at as garbage again."""
    if not gc.isenabled():  # inside another one, which ends it
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
