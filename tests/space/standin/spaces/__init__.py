"""A stand-in for the package `spaces` on ZeroGPU: a fork for every call, and nothing shared.

It behaves as spaces 0.51 does where it matters: arguments and steps are pickled, a generator's
return value is lost, of an error that is not Gradio's only the kind comes back, closing a generator
ends the work there at its next step, and the work runs in a thread of the fork. Unlike the real one
it never uses a fork twice, so nothing can survive in one.
"""

import inspect
import multiprocessing
import os
import threading
from functools import partial, wraps

import gradio as gr

CALLS: list[tuple[str, float]] = []  # the function's name and the duration of every call
_forks = multiprocessing.get_context("fork")
_forked = False


def GPU(task=None, *, duration=60):  # as it is called there
    """The decorator, with a duration in seconds or a function of the arguments."""
    if task is None:
        return partial(GPU, duration=duration)
    assert inspect.isgeneratorfunction(task), "of functions the studio marks generators alone"

    @wraps(task)
    def wrapped(*args):
        if _forked:
            yield from task(*args)
            return
        CALLS.append((task.__name__, duration(*args) if callable(duration) else duration))
        here, there = _forks.Pipe()
        stop = _forks.Event()
        child = _forks.Process(target=_child, args=(task, args, there, stop), daemon=True)
        child.start()
        there.close()
        try:
            yield from _received(here)
        finally:
            stop.set()
            while child.is_alive():  # what it sends until it looks is nobody's
                if here.poll(0.05):
                    try:
                        here.recv()
                    except EOFError:
                        break
            child.join()

    return wrapped


def _received(here):
    while True:
        try:
            kind, value = here.recv()
        except EOFError:
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error") from None
        if kind == "end":
            return
        if kind == "error":
            raise gr.Error(value, title="ZeroGPU worker error")
        yield value


def _child(task, args, there, stop):
    global _forked
    _forked = True
    thread = threading.Thread(target=_work, args=(task, args, there, stop))
    thread.start()
    thread.join()
    os._exit(0)  # none of the parent's clean-up


def _work(task, args, there, stop):
    import torch

    torch.set_num_threads(1)  # a fork of a process whose threads compute has not got them
    steps = task(*args)
    try:
        for step in steps:
            if stop.is_set():
                steps.close()
                break
            there.send(("step", step))
        there.send(("end", None))
    except OSError:
        pass  # nobody listens
    except Exception as error:
        there.send(("error", type(error).__name__))
