"""A reverse proxy for rehearsals: TLS outside, plain HTTP inside, and a path that it takes away.

It stands where a Space's own proxy stands, or somebody's nginx: it streams what comes as it comes
(Gradio sends its events so), and tells the page how it was asked for. Knows nothing of the studio.
"""

import http.client
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OWN = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "proxy-connection",
}
CHUNK = 65536  # bytes


class _Handler(BaseHTTPRequestHandler):
    """One request; `to`, `prefix` and `scheme` are its server's."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):  # a browser that leaves
            super().handle()

    def pass_on(self) -> None:
        if self.server.prefix and self.path == self.server.prefix:  # as nginx does
            self.send_response(301)
            self.send_header("Location", f"{self.path}/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not self.path.startswith(f"{self.server.prefix}/"):
            self.send_error(404)
            return
        inner = self.path[len(self.server.prefix) :]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        there = http.client.HTTPConnection(*self.server.to)
        try:
            there.putrequest(self.command, inner, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in OWN:
                    there.putheader(name, value)
            there.putheader("X-Forwarded-Proto", self.server.scheme)
            there.putheader("X-Forwarded-Host", self.headers.get("Host", ""))
            there.endheaders(body or None)
            self.give_back(there.getresponse())
        finally:
            there.close()

    def give_back(self, found: http.client.HTTPResponse) -> None:
        self.close_connection = True
        self.send_response_only(found.status, found.reason)
        for name, value in found.getheaders():
            if name.lower() not in OWN:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while part := found.read1(CHUNK):
            self.wfile.write(part)
            self.wfile.flush()

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = do_OPTIONS = pass_on


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:  # of a browser that leaves; the page says what is wrong
        pass


@contextmanager
def proxied(port: int, prefix: str = "", certificate: Path | None = None) -> Iterator[int]:
    """The port of a proxy to a port of this machine.

    Args:
        prefix: path below which the page lies outside, such as `/studio`; '' for none.
        certificate: a PEM file with key and certificate, for https (see `certified`).
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    server.to, server.prefix = ("127.0.0.1", port), prefix
    server.scheme = "https" if certificate else "http"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def certified(folder: Path, host: str) -> Path:
    """A certificate for a host that nobody has signed, with its key, made by openssl."""
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={host}", "-keyout", str(path), "-out", str(folder / "only.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "only.pem").read_text())
    return path
