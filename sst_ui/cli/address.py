"""Host and port of the page, checked before anything heavy is loaded."""

import argparse
import errno
import os
import socket
import time
from typing import Any, NoReturn

from sst_ui.errors import UserError

FIRST, MANY = 7860, 100  # the ports that Gradio tries by itself
NUMBERS = ("GRADIO_NUM_PORTS", "GRADIO_NODE_NUM_PORTS", "GRADIO_ANALYTICS_MAX_EVENTS")


class Parser(argparse.ArgumentParser):
    """Wrong arguments are bad input like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def check(host: str, port: str | None) -> int | None:
    """The port as a number, if the page can be served there; None for the first one that is free.

    Raises:
        UserError: no port, one that is taken or not allowed, a host that is not this machine's, a
            setting of Gradio's that is no number.
    """
    for name in NUMBERS:
        text = os.environ.get(name, "1").strip()
        if not _whole(text, 10**6):
            raise UserError(f"{name} is {text[:40]!r}; it must be 1 to 1000000.")
    where = _resolve(host)
    if port is None:
        many = int(os.environ.get("GRADIO_NUM_PORTS", MANY))
        last = min(FIRST + many, 65536) - 1
        first: OSError | None = None
        for number in range(FIRST, last + 1):
            if (error := _refusal(where, number)) is None:
                return None
            first = first or error
        if first is None:
            return None  # no port to try: Gradio says so
        raise UserError(_why(host, f"{FIRST} to {last}", first))
    text = port.strip()
    if not _whole(text, 65535):
        raise UserError(f"the port is {port[:40]!r}; give a whole number from 1 to 65535.")
    if (error := _refusal(where, int(text))) is not None:
        raise UserError(_why(host, text, error))
    return int(text)


def launch(page: Any, **options: Any) -> None:
    """Open the page without waiting for its end.

    Raises:
        UserError: Gradio cannot serve there after all.
    """
    try:
        page.launch(**options, prevent_thread_lock=True)
    except BrokenPipeError:
        raise
    except OSError as error:  # somebody has taken the port meanwhile
        raise UserError(f"the page cannot be served: {str(error).splitlines()[0][:200]}") from error


def wait(page: Any) -> None:
    """Serve until the program is stopped, and close the page then, however it is stopped."""
    try:
        while page.is_running:
            time.sleep(0.1)
    finally:
        page.close(verbose=False)


def _whole(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12 and 0 < int(text) <= most


def _resolve(host: str) -> tuple[socket.AddressFamily, tuple]:
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if not name.strip() or "\0" in name or len(name) > 253:
            raise UnicodeError
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError) as error:
        raise UserError(
            f"the host {host[:80]!r} is unknown; give an address of this machine: 127.0.0.1 is for "
            "this machine only, 0.0.0.0 for others too."
        ) from error
    return found[0][0], found[0][4]


def _refusal(where: tuple[socket.AddressFamily, tuple], port: int) -> OSError | None:
    """What the system says to serving there; None where it can be done."""
    family, (name, _, *rest) = where
    try:
        with socket.socket(family) as door:
            if os.name != "nt":
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((name, port, *rest))
    except OSError as error:
        return error
    return None


def _why(host: str, port: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host[:80]} is in use; give another one with --port, or leave it out."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not open to this user; give one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host[:80]} is not an address of this machine; give 127.0.0.1, or 0.0.0.0 for all."
    return f"{host[:80]}, port {port}, cannot be used: {error.strerror}; give others."
