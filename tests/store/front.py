"""A web server on this machine that fails as it is told, in front of what serves files.

Faults strike answers that carry a good part of a file; what only asks about it is left alone.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, dict[str, str], bytes]
# Of a method, a path with its query, and headers by their names in small letters.
Backend = Callable[[str, str, Mapping[str, str]], Reply]
SMALL = 2000
_STEP = 16 * 1024


@dataclass
class Asked:
    """One request, and how many bytes of its answer were sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    sent: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        """The bytes that were asked for, the end excluded; None for all."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1) if match else None


@dataclass
class Front:
    """What it was asked, and how it fails. `url` is where it listens."""

    backend: Backend
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    # Answered in turn instead of a part of a file: status, headers.
    refusals: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    # Bytes after which an answer is cut, one for each; when empty, nothing is cut.
    cuts: deque[int] = field(default_factory=deque)
    # A byte of the file that arrives changed.
    flipped: int | None = None
    # Bytes that are promised beyond those that come.
    lie: int = 0
    rate: float = 0.0  # bytes a second of each answer; 0: as fast as it goes
    # Answers stop after their head until it is set.
    flowing: threading.Event = field(default_factory=threading.Event)
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def parts(self) -> list[Asked]:
        """The requests for a good part of a file."""
        return [one for one in self.asked if one.method == "GET" and (one.sent > SMALL or one.range)]

    @property
    def sent(self) -> int:
        return sum(one.sent for one in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        front = self.front
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers)
        with front.lock:
            front.asked.append(asked)
        status, said, body = front.backend(self.command, self.path, headers)
        large = self.command == "GET" and status < 300 and len(body) > SMALL
        if large and front.refusals:
            status, said, body = *front.refusals.popleft(), b""
            large = False
        self.send_response(status)
        extra = front.lie if large else 0
        for name, value in {"Content-Length": str(len(body) + extra), **said}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if not large:
            self.wfile.write(body)
            asked.sent = len(body)
            return
        with front.lock:
            front.busy += 1
            front.most_busy = max(front.busy, front.most_busy)
        try:
            self._send(asked, body, said)
        finally:
            with front.lock:
                front.busy -= 1

    def _send(self, asked: Asked, body: bytes, said: Mapping[str, str]) -> None:
        front = self.front
        begin = int(re.match(r"bytes (\d+)", said.get("Content-Range", "bytes 0"))[1])  # type: ignore[index]
        if front.flipped is not None and begin <= front.flipped < begin + len(body):
            at = front.flipped - begin
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        cut = front.cuts.popleft() if front.cuts else None
        end = len(body) if cut is None else min(cut, len(body))
        for at in range(0, end, _STEP):
            front.flowing.wait(30)
            chunk = body[at : min(at + _STEP, end)]
            self.wfile.write(chunk)
            asked.sent += len(chunk)
            if front.rate:
                time.sleep(len(chunk) / front.rate)
        self.close_connection = cut is not None or front.lie > 0 or self.close_connection


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no error here."""


@contextmanager
def front_of(backend: Backend) -> Iterator[Front]:
    """One that serves until the end of the block, without faults."""
    front = Front(backend)
    front.flowing.set()
    server = _Server(("127.0.0.1", 0), type("Of", (_Handler,), {"front": front}))
    front.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield front
    finally:
        front.flowing.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


def part_of(content: bytes, headers: Mapping[str, str], said: Mapping[str, str]) -> Reply:
    """A file as a good server sends it: with ranges, if it is still the one that was meant."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
    meant = headers.get("if-range", "")
    if match is None or (meant and meant not in {said.get("ETag"), said.get("Last-Modified")}):
        return 200, dict(said), content
    begin, end = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
    if begin >= len(content):
        return 416, {**said, "Content-Range": f"bytes */{len(content)}"}, b""
    return 206, {**said, "Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}, content[begin:end]


def passed_on(address: str) -> Backend:
    """A backend that asks another server the same, in the name of the front (which is signed)."""
    host = address.removeprefix("http://")

    def ask(method: str, path: str, headers: Mapping[str, str]) -> Reply:
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            reply = connection.getresponse()
            body = reply.read()
            hop = {"transfer-encoding", "connection", "content-length"}
            said = {name: value for name, value in reply.getheaders() if name.lower() not in hop}
            if method == "HEAD":
                said["Content-Length"] = reply.getheader("Content-Length") or "0"
            return reply.status, said, body
        finally:
            connection.close()

    return ask
