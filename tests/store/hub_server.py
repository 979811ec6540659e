"""A hub on this machine: the few endpoints of the Hugging Face Hub that a download needs, and its faults.

Small files are answered by the hub itself; large ones (LFS) are on a second address, as on the real one, to
which the hub leads with a signed link.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40
REPO = "tiny/model-GGUF"
SIGNED = "signature=secret"


@dataclass
class Asked:
    """One request, its names of headers in small letters. `cdn`: it came to the second address."""

    method: str
    path: str
    headers: Mapping[str, str]
    cdn: bool


@dataclass
class Repo:
    """`revisions` are commits by branch or tag; `files` are contents by commit and path."""

    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {COMMIT: {}})
    gated: bool = False
    private: bool = False
    card: object = None  # the head of its README


@dataclass
class Hub:
    """What it has, what it was asked, and how it fails. `url` is its endpoint."""

    url: str = ""
    cdn: str = ""
    repos: dict[str, Repo] = field(default_factory=lambda: {REPO: Repo()})
    members: set[str] = field(default_factory=lambda: {"hf_member"})
    strangers: set[str] = field(default_factory=lambda: {"hf_stranger"})
    asked: list[Asked] = field(default_factory=list)
    # Answered in turn before anything else: status, headers.
    refusals: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    cdn_refusals: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    # Bytes after which a transfer is cut, one for each transfer; when empty, nothing is cut.
    cuts: deque[int] = field(default_factory=deque)
    ranges: bool = True
    corrupt: bool = False
    more: bytes = b""
    # Transfers stop half way until it is set.
    flowing: threading.Event = field(default_factory=threading.Event)
    stalls: str = ""  # those alone whose path ends so
    stalled: threading.Event = field(default_factory=threading.Event)
    # What is asked about a repository is not answered until it is set.
    telling: threading.Event = field(default_factory=threading.Event)

    def add(self, path: str, content: bytes, repo: str = REPO, commit: str = COMMIT) -> None:
        self.repos.setdefault(repo, Repo()).files.setdefault(commit, {})[path] = content

    def requests(self, method: str, *, cdn: bool) -> list[Asked]:
        return [one for one in self.asked if one.method == method and one.cdn is cdn]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    cdn: bool

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        path = urlsplit(self.path).path
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.asked.append(Asked(self.command, unquote(path), headers, self.cdn))
        refusals = hub.cdn_refusals if self.cdn else hub.refusals
        if refusals:
            self._head(*refusals.popleft())
        elif self.cdn:
            self._blob(unquote(path))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path):
            self._info(match[1], unquote(match[2]))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        else:
            self._head(404, {})

    def _repo(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; or None after an answer that says why not."""
        hub, repo = self.hub, self.hub.repos.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in hub.members | hub.strangers:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and token not in hub.members):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and token not in hub.members:
            self._refuse(403 if token else 401, "GatedRepo", "Access to model is restricted")
        else:
            commit = repo.revisions.get(revision, revision)
            if commit in repo.files:
                return commit, repo.files[commit]
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _info(self, name: str, revision: str) -> None:
        if found := self._repo(name, revision):
            commit, files = found
            self.hub.telling.wait(30)
            body = {
                "id": name,
                "sha": commit,
                "siblings": [{"rfilename": path, "size": len(content)} for path, content in files.items()],
                "cardData": self.hub.repos[name].card,
            }
            self._head(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._repo(name, revision)
        if found is None:
            return
        commit, files = found
        known = {"X-Repo-Commit": commit}
        if path not in files:
            self._refuse(404, "EntryNotFound", "Entry not found", known)
        elif path.endswith((".gguf", ".bin", ".safetensors")):
            digest, size = sha256(files[path]).hexdigest(), len(files[path])
            self._head(
                302,
                {
                    **known,
                    "X-Linked-Etag": f'"{digest}"',
                    "X-Linked-Size": str(size),
                    "ETag": '"of the link"',
                    "Location": f"{self.hub.cdn}/{name}/{commit}/{path}?{SIGNED}",
                },
            )
        else:
            content = files[path]
            etag = sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
            self._transfer(content, {**known, "ETag": f'"{etag}"'})

    def _blob(self, path: str) -> None:
        org, name, commit, rest = path.lstrip("/").split("/", 3)
        content = self.hub.repos[f"{org}/{name}"].files[commit][rest]
        if self.hub.corrupt:
            content = bytes(len(content))
        self._transfer(content, {})

    def _transfer(self, content: bytes, headers: dict[str, str]) -> None:
        hub, status, begin, end = self.hub, 200, 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if hub.ranges else None
        if asked:
            begin, end = int(asked[1]), min(int(asked[2] or end) + 1, end)
            if begin >= len(content):
                self._head(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            status = 206
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        body = content[begin:end] + hub.more
        if self.command == "HEAD":
            self._head(status, {**headers, "Content-Length": str(len(body))})
            return
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        cut = hub.cuts.popleft() if hub.cuts else None
        half = len(body) // 2 if cut is None else min(cut, len(body))
        self.wfile.write(body[:half])
        if cut is not None:
            self.close_connection = True
            return
        if not hub.flowing.is_set() and urlsplit(self.path).path.endswith(hub.stalls):
            hub.stalled.set()
            hub.flowing.wait(30)
        self.wfile.write(body[half:])

    def _refuse(self, status: int, code: str, message: str, more: Mapping[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **(more or {})}
        self._head(status, {**headers, "X-Error-Code": code} if code else headers)

    def _head(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no error here."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that serves until the end of the block; empty, and without faults."""
    hub = Hub()
    hub.flowing.set()
    hub.telling.set()
    servers = [
        _Server(("127.0.0.1", 0), type("Of", (Handler,), {"hub": hub, "cdn": cdn})) for cdn in (False, True)
    ]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.flowing.set()
        hub.telling.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join(10)
            server.server_close()
