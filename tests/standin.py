"""A stand-in for the Hugging Face Hub on loopback: the calls that pushing a model makes.

Knows whoami, creating a repository, checking a card, preupload, the LFS batch and its PUTs, a
commit, model_info; and, for signing in, OpenID's configuration, authorisation and token.
Keeps everything in memory and writes down what it was sent. Files over 1 kB count as large.
"""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import yaml

TOKEN = "stand-in-token"
OPENID = "/.well-known/openid-configuration"
CODE = "one-time"  # what the browser brings back from signing in
LARGE = 1000


class Hub:
    """What the stand-in holds.

    Attributes:
        repos: name -> {"private": bool, "files": {path: bytes}, "commits": int}.
        blobs: sha256 -> content of large files.
        puts: sha256 of every large file sent, in order.
        fail_puts: how many of the next PUTs after `spare` good ones are refused.
        accounts: token -> whose it is.
        callers: the account behind every call that was allowed, in order.
        visitor: the token that signing in gives.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.spare, self.fail_puts = 0, 0
        self.url = ""
        self.accounts = {TOKEN: "ada"}
        self.callers: list[str] = []
        self.visitor = TOKEN


class Handler(BaseHTTPRequestHandler):
    """One call; the `hub` is its server's."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().strip(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, data=None, status: int = 200) -> None:
        text = json.dumps(data if data is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def allowed(self) -> bool:
        account = self.account()
        if account:
            self.hub.callers.append(account)
            return True
        self.answer({"error": "Invalid credentials"}, 401)
        return False

    def account(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.accounts.get(token, "")

    def openid(self, data: bytes = b"") -> bool:
        """Signing in, without a question: whether this call was a part of that."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path == OPENID:
            ends = {"authorization_endpoint": "authorize", "token_endpoint": "token"}
            ends = {key: f"{self.hub.url}/oauth/{end}" for key, end in ends.items()}
            self.answer({"issuer": self.hub.url, **ends})
        elif path == "/oauth/authorize":
            back = urlencode({"code": CODE, "state": query["state"][0]})
            place = query["redirect_uri"][0]
            self.send_response(302)
            self.send_header("Location", f"{place}{'&' if '?' in place else '?'}{back}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/oauth/token" and parse_qs(data.decode()).get("code") == [CODE]:
            user = {"preferred_username": self.hub.accounts[self.hub.visitor], "name": "A visitor"}
            token = {"access_token": self.hub.visitor, "token_type": "bearer", "expires_in": 3600}
            self.answer({**token, "scope": "openid manage-repos", "userinfo": user})
        else:
            return False
        return True

    def do_GET(self) -> None:
        if self.openid() or not self.allowed():
            return
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            self.answer({"name": self.account(), "type": "user", "orgs": []})
        elif path.startswith("/api/models/") and (name := path[12:]) in self.hub.repos:
            repo = self.hub.repos[name]
            files = [{"rfilename": file} for file in repo["files"]]
            self.answer(
                {"id": name, "private": repo["private"], "siblings": files, "sha": "0" * 40}
            )
        else:
            self.answer({"error": "Repository not found"}, 404)

    def do_POST(self) -> None:
        data = self.body()
        if self.openid(data) or not self.allowed():
            return
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.create(json.loads(data))
        elif path == "/api/validate-yaml":  # of a README's front matter
            front = yaml.safe_load(json.loads(data)["content"].split("---")[1])
            errors = [] if isinstance(front, dict) else [{"message": "no mapping"}]
            self.answer({"errors": errors, "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(data)["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(data))
        elif "/commit/" in path:
            self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], data)
        else:
            self.answer({"error": f"unknown call {path}"}, 404)

    def do_PUT(self) -> None:
        data, oid = self.body(), self.path.rpartition("/")[2]
        self.hub.puts.append(oid)
        if self.hub.fail_puts and not self.hub.spare:
            self.hub.fail_puts -= 1
            self.answer({"error": "the disk is full"}, 400)
            return
        self.hub.spare = max(0, self.hub.spare - 1)
        self.hub.blobs[oid] = data
        self.answer()

    def create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or self.account()}/{wanted['name']}"
        if not name.startswith(f"{self.account()}/"):
            self.answer({"error": "You don't have the rights"}, 403)
            return
        there = name in self.hub.repos
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.hub.repos.setdefault(name, {"private": bool(private), "files": {}, "commits": 0})
        self.answer({"url": f"{self.hub.url}/{name}", "id": name}, 409 if there else 200)

    def batch(self, wanted: dict) -> None:
        objects = []
        for item in wanted["objects"]:
            if item["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.url}/blob/{item['oid']}", "header": {}}
                item = {**item, "actions": {"upload": upload}}
            objects.append(item)
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, name: str, data: bytes) -> None:
        repo = self.hub.repos[name]
        for line in map(json.loads, data.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo["files"][value["path"]] = self.hub.blobs[value["oid"]]
        repo["commits"] += 1
        oid = f"{repo['commits']:040x}"
        self.answer(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
        )


@contextmanager
def standin():
    """A running stand-in; `hub.url` is its endpoint."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
