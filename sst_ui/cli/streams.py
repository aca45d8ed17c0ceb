"""Terminal streams as the operating system provides them: encodings, closed pipes, signals, exit
codes.

Imports nothing heavy: a program stopped while it starts must end as quietly as later.
"""

import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sst_ui import disk
from sst_ui.errors import LINE, UserError, line_of

BAD, STOPPED, ENDED, PIPE = 2, 130, 143, 141  # the last three as a shell counts signals


class Ended(BaseException):
    """The system asked the program to end (SIGTERM, SIGHUP): what is begun is cleaned up."""


class Warnings(logging.Handler):
    """Our warnings as one line each on stderr, as any other word of a command."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(f"warning: {record.getMessage()}", file=sys.stderr)


def guarded(work: Callable[[], int | None]) -> int:
    """Carry out a command; whatever ends it is at most one line, and an exit code.

    Returns:
        What `work` returns (None counts as 0); 2 for bad input and for what the system refuses; 130
        after Ctrl+C, 143 after SIGTERM, 141 when the output pipe is closed.
    """
    _encodable()
    try:
        with _signals():
            try:
                code = work() or 0
            except SystemExit as left:  # --help; rich where a pipe is closed
                if isinstance(left.__context__, BrokenPipeError):
                    raise BrokenPipeError from left
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
            _flush()
            return code
    except UserError as error:
        _say(f"error: {line_of(error, LINE)}")
        return BAD
    except BrokenPipeError:
        _silence()
        return PIPE
    except KeyboardInterrupt:
        _say("stopped.")
        return STOPPED
    except Ended:
        _say("stopped.")
        return ENDED
    except Exception as error:
        refused = disk.refusal(error)
        if refused is None:
            raise
        name, what = getattr(error, "filename", None), "cannot write"
        if isinstance(name, str | bytes | os.PathLike):
            what = f"cannot use {os.fsdecode(name)}"
        _say(f"error: {what}: {os.strerror(refused)}; {disk.advice(refused)}.")
        _silence()
        return BAD


def to_json(value: Any) -> str:
    """JSON as stdout can hold it: what its encoding has no sign for as \\u escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return text if shows(text) else json.dumps(value)


def shows(text: str) -> bool:
    """Whether stdout has a sign for everything in a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def warn_here() -> None:
    """Let warnings of the studio appear as lines of the command that runs."""
    log = logging.getLogger("sst_ui")
    if not any(isinstance(each, Warnings) for each in log.handlers):
        log.addHandler(Warnings(logging.WARNING))


def _encodable() -> None:
    """Streams of other encodings than UTF-8 show a question mark for what they have no sign for."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there may be none, or a stand-in
            with suppress(ValueError, OSError):
                stream.reconfigure(errors="replace")


@contextmanager
def _signals() -> Iterator[None]:
    """Let the system's polite signals end the program as an exception does, cleaning up."""

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one ends it at once
        raise Ended

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {}
    for number in (getattr(signal, name) for name in names):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup and the like have set it otherwise
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _say(text: str) -> None:
    """One line on stderr, whatever has become of it; and nothing more on a closed pipe."""
    line = " ".join(text.split())
    if len(line) > LINE:
        line = f"{line[: LINE // 2]} … {line[-LINE // 2 :]}"
    try:
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)
        _flush()
    except (OSError, ValueError):
        _silence()


def _silence() -> None:
    """Lead the streams that cannot be written to nowhere, so that the end of Python is quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
