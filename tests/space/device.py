"""ZeroGPU's side of a rehearsal: who lends GPUs to the real package `spaces`, on a machine without.

`lender` answers what the package asks of a Space's own service, and writes down for what it was
asked. A program begins with `PRELUDE`, which leaves out the two steps of a fork that need a real
GPU; everything else is the package's: its forks, their queues, its emulation of CUDA outside.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PRELUDE = """
import runpy, sys
import gradio
import spaces.zero.torch as there
there.init = lambda uuid: None
there.move = lambda callback=None: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Lender:
    """What was asked for.

    Attributes:
        url: where it answers.
        seconds: for how long each GPU was wanted.
        out: token -> GPU, of those that are lent now.
        failed: how many came back from a call that failed.
        forks: process numbers that were let in.
    """

    def __init__(self) -> None:
        self.url = ""
        self.seconds: list[int] = []
        self.out: dict[str, int] = {}
        self.failed = 0
        self.forks: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        lender: Lender = self.server.lender
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        found: object = {}
        if asked.path == "/schedule":
            token = f"token-{len(lender.seconds)}"
            place = next(n for n in range(99) if n not in lender.out.values())
            lender.seconds.append(int(query["durationSeconds"]))
            lender.out[token] = place
            found = {
                "idle": True, "nvidiaIndex": place, "nvidiaUUID": "GPU-0", "allowToken": token
            }  # fmt: skip
        elif asked.path == "/allow":
            lender.forks.add(query["pid"])
        elif asked.path == "/release":
            lender.out.pop(query["allowToken"], None)
            lender.failed += query["fail"].lower() == "true"
        text = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def lender() -> Iterator[Lender]:
    """A lender that has a GPU for everybody at once; an idle fork is used again."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.lender = Lender()
    server.lender.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.lender
    finally:
        server.shutdown()
        server.server_close()


def zero(lent: Lender) -> dict[str, str]:
    """What the environment of a ZeroGPU Space has beside a Space's."""
    return {
        "ACCELERATOR": "zero-a10g",
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": lent.url,
        "OMP_NUM_THREADS": "1",  # there is no GPU here, and forks with two threads each would wait
    }
