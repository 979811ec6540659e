"""HTTP for sources that strangers may name: `https`, `ollama`. Imported when a file is wanted, not before.

Each connection goes to an address that `addresses` let pass, and TLS is checked against the name. Redirects
are followed here, each as a request of its own: no credentials go to another host, no encryption is given up.
Signed addresses and passwords never get into a message. No proxy is used: it would hide where we are led.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

import certifi
import httpcore

from modelyard import __version__
from modelyard.errors import DownloadFailed, SourceForbidden, SourceNotFound, StoreError
from modelyard.store.addresses import Guard
from modelyard.store.pace import LARGEST, BadAnswer, Throttled, retry_after
from modelyard.store.source import Watch
from modelyard.store.transfer import Answer

TIMEOUT = 20.0  # seconds, for a connection and for each silence
REDIRECTS = 8
_SAFE = "/%!$&'()*+,;=:@~-._?"
_LONGEST_HOST = 253
_SAID = 200  # characters of what a server said that are repeated
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]+)-([0-9]+)|\*)/([0-9]+)")
_PAGES = ("text/html", "application/xhtml")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is no redirect; names of headers in small letters. `host` is who gave it."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    host: str


class HttpClient:
    """Requests for one fetch. Safe for several threads; closed at the end of its block."""

    def __init__(self, guard: Guard, watch: Watch, connections: int, timeout: float = TIMEOUT) -> None:
        self._watch = watch
        self._timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
        self._network = {
            scheme: _Network(guard, watch, encrypted=scheme == "https") for scheme in ("http", "https")
        }
        self._pools = {
            scheme: httpcore.ConnectionPool(
                _trust(), max_connections=2 * connections, network_backend=network
            )
            for scheme, network in self._network.items()
        }

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.close()

    def abort(self) -> None:
        """End all waits, from another thread."""
        for network in self._network.values():
            network.abort()

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Reply]:
        """The answer to a GET, behind any redirects. Raises StoreError for what never came to an answer."""
        first = at = self._address(url)
        sent = {"User-Agent": f"modelyard/{__version__}", "Accept-Encoding": "identity", **headers}
        for _ in range(REDIRECTS):
            own = (at.scheme, at.hostname, at.port) == (first.scheme, first.hostname, first.port)
            with self._ask("GET", at, sent | (_authorization(first) if own else {})) as reply:
                if reply.status not in {301, 302, 303, 307, 308}:
                    yield reply
                    return
                if not (led := reply.headers.get("location")):
                    raise BadAnswer(
                        f"{self._watch.source}: {reply.host} leads elsewhere without saying where (status "
                        f"{reply.status} without Location); name the address of the file itself"
                    )
                at = self._address(led, at)
            if at.scheme not in self._pools or not at.hostname:
                raise SourceForbidden(f"{self._watch.source}: leads to what is no https:// address")
        raise BadAnswer(
            f"{self._watch.source}: leads from one address to another without an end ({REDIRECTS} "
            "redirects); name the address of the file itself"
        )

    @contextmanager
    def head(self, url: str, headers: Mapping[str, str]) -> Iterator[Reply]:
        """The answer to a HEAD, which may be a redirect: the headers are for this address alone."""
        with self._ask("HEAD", self._address(url), headers) as reply:
            yield reply

    def _address(self, url: str, before: SplitResult | None = None) -> SplitResult:
        """A URL, or where an answer from `before` leads. Raises BadAnswer, without its text: it may be
        signed."""
        try:
            return _parts(urljoin(before.geturl(), url) if before else url)
        except ValueError:
            leads = f"{before.hostname} leads to" if before else "this is"
            raise BadAnswer(
                f"{self._watch.source}: {leads} no address that can be asked: its host or its port cannot be"
            ) from None

    @contextmanager
    def _ask(self, method: str, url: SplitResult, headers: Mapping[str, str]) -> Iterator[Reply]:
        host = url.hostname or ""
        self._watch.check()
        try:
            with self._pools[url.scheme].stream(
                method,
                url._replace(netloc=url.netloc.rpartition("@")[2]).geturl(),
                headers=[*headers.items(), ("Host", url.netloc.rpartition("@")[2])],
                extensions={"timeout": self._timeouts},
            ) as response:
                said = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in response.headers
                }
                yield Reply(response.status, said, response.iter_stream(), host)
        except (
            httpcore.TimeoutException,
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
        ) as error:
            self._watch.check()
            cause = str(error)[:_SAID] or type(error).__name__
            raise DownloadFailed(
                f"{self._watch.source}: the connection to {host} failed ({cause}); check it and try again"
            ) from error


class HttpRemote:
    """A `transfer.Remote`: one address, asked for ranges."""

    def __init__(self, client: HttpClient, url: str, watch: Watch) -> None:
        self._client, self._url, self._watch = client, url, watch

    @contextmanager
    def open(self, begin: int, end: int | None, validator: str) -> Iterator[Answer]:
        headers = {}
        if begin or end is not None:
            headers["Range"] = f"bytes={begin}-{'' if end is None else end - 1}"
            if validator:
                headers["If-Range"] = validator
        with self._client.get(self._url, headers) as reply:
            if reply.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, 416}:
                raise refusal(self._watch.source, reply)
            yield answer_of(self._watch.source, reply.status, reply.headers, begin, reply.chunks)

    def abort(self) -> None:
        self._client.abort()


def answer_of(
    source: str, status: int, headers: Mapping[str, str], begin: int, chunks: Iterator[bytes]
) -> Answer:
    """What a 200, 206 or 416 holds. Raises StoreError for what is no file, BadAnswer for what contradicts
    itself."""
    length, told = headers.get("content-length", ""), headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(told)
    kind = headers.get("content-type", "")[:_SAID]
    if kind.lower().startswith(_PAGES):
        raise SourceNotFound(
            f"{source}: its server sends a web page ({kind}), not a file; name the address of the file itself"
        )
    if headers.get("content-encoding", "identity") != "identity":
        packed = headers["content-encoding"][:_SAID]
        raise SourceNotFound(f"{source}: its server sends it packed ({packed}) only")
    if status == HTTPStatus.OK:
        size = _bytes(source, length, "Content-Length") if length else None
        return Answer(0, size, _validator(headers), False, chunks)
    if match is None or (match[1] is None) is (status == HTTPStatus.PARTIAL_CONTENT):
        raise DownloadFailed(f"{source}: its server does not say which bytes it sends; try again")
    size = _bytes(source, match[3], "Content-Range")
    if match[1] is None:
        return Answer(begin, size, _validator(headers), True, iter(()))
    first, last = (_bytes(source, match[group], "Content-Range") for group in (1, 2))
    if not first <= last < size:
        raise BadAnswer(
            f"{source}: its server contradicts itself (Content-Range: {told}); fetch it from another one"
        )
    return Answer(first, size, _validator(headers), True, chunks)


def _bytes(source: str, text: str, header: str) -> int:
    """A number of bytes that a file may have."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(LARGEST)) or int(text) > LARGEST:
        raise BadAnswer(
            f"{source}: its server speaks of {text[:_SAID]} bytes ({header}), which no file has; fetch it "
            "from another one"
        )
    return int(text)


def refusal(source: str, reply: Reply) -> StoreError:
    """The error for any other answer."""
    status, host = reply.status, reply.host
    if status in {401, 403, 407}:
        return SourceForbidden(
            f"{source}: {host} refuses it with status {status}; name an address that is open, or one with "
            "credentials (https://USER:PASSWORD@HOST/…)"
        )
    if status in {404, 410}:
        return SourceNotFound(f"{source}: {host} has no such file (status {status}); check the address")
    after = retry_after(reply.headers)
    if status in {429, 503}:
        when = "later" if after is None else f"in {after:.0f} s"
        return Throttled(
            f"{source}: {host} limits how often it is asked ({status}); try again {when}", retry_after=after
        )
    if status >= 500 or status in {408, 425}:
        return DownloadFailed(f"{source}: {host} answered with status {status}; try again", retry_after=after)
    return SourceNotFound(f"{source}: {host} answered with status {status}; check the address")


def _validator(headers: Mapping[str, str]) -> str:
    """What stands for exactly these bytes: a strong ETag, else the date of the last change."""
    etag = headers.get("etag", "")
    return etag if etag.startswith('"') else headers.get("last-modified", "")


def _parts(url: str) -> SplitResult:
    """A URL as it is sent: escaped, the host as DNS has it, without a fragment. Raises ValueError for one
    that nothing can be asked at."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    host = host if host.isascii() else host.encode("idna").decode()
    escaped = quote(parts.path or "/", safe=_SAFE), quote(parts.query, safe=_SAFE)
    made = SplitResult(parts.scheme.lower(), f"{user}{at}{host}", *escaped, "")
    if made.port == 0 or len(made.hostname or "") > _LONGEST_HOST or not host.isprintable():
        raise ValueError
    return made


def _trust() -> ssl.SSLContext:
    """The authorities of the system (or SSL_CERT_FILE), and those that come along with Python's packages."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _authorization(url: SplitResult) -> dict[str, str]:
    if url.username is None:
        return {}
    words = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}


class _Network(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and can end all its connections."""

    def __init__(self, guard: Guard, watch: Watch, *, encrypted: bool) -> None:
        self._guard, self.watch, self._encrypted = guard, watch, encrypted
        self._inner = httpcore.SyncBackend()
        self._lock = threading.Lock()
        self._streams: set[httpcore.NetworkStream] = set()
        self._aborted = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception | None = None
        for address in self._guard.addresses(self.watch.source, host, port, encrypted=self._encrypted):
            self.watch.check()
            try:
                stream = self._inner.connect_tcp(str(address), port, timeout, local_address, socket_options)
                return _Stream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    def keep(self, stream: httpcore.NetworkStream) -> None:
        """Have a stream ended by `abort` from now on."""
        with self._lock:
            self._streams.add(stream)
            aborted = self._aborted
        if aborted:
            _shut_down(stream)

    def forget(self, stream: httpcore.NetworkStream) -> None:
        with self._lock:
            self._streams.discard(stream)

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            streams = list(self._streams)
        for stream in streams:
            _shut_down(stream)


class _Stream(httpcore.NetworkStream):
    """A connection that its network knows of."""

    def __init__(self, inner: httpcore.NetworkStream, network: _Network) -> None:
        self._inner, self._network = inner, network
        network.keep(inner)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._network.watch.check()  # a server that goes on and on with what is no answer
        return self._inner.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._network.forget(self._inner)
        self._inner.close()

    def start_tls(
        self, ssl_context: object, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._network.forget(self._inner)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._network)  # type: ignore[arg-type]

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


def _shut_down(stream: httpcore.NetworkStream) -> None:
    with suppress(OSError, AttributeError):
        # Not SSLSocket's own: it would take the TLS state away from under the reader.
        socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)
