"""Who may do what: keys and scopes, allowed hosts and origins. Runs before any body is read.

Access is decided by the key alone, never by the peer's address: behind a reverse proxy everybody looks
local. Without keys everything is open on loopback (or when the configuration says so), and nothing elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from urllib.parse import urlsplit

from modelyard.config import Key, Scope
from modelyard.core.types import Priority
from modelyard.errors import Forbidden, HostNotAllowed, InvalidRequest, OriginNotAllowed, Unauthorized
from modelyard.gateway.exchange import ANYBODY, NOBODY, Caller, Exchange, Headers
from modelyard.gateway.translation.paths import DOWNLOAD, KEY_IN_BODY, SETTINGS

OPEN_PATHS = frozenset(
    {
        *("/", "/health", "/health_check", "/ready", "/docs", "/openapi.json", "/favicon.ico"),
        SETTINGS,
    }
)
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
CACHE_BOUND = 1024
TASKS = "/v1/tasks"
USAGE = "/v1/usage"
MANAGED = ("/v1/models", "/v1/cache", TASKS)
OPERATED = ("/admin", "/v1/audit", "/v1/engines", "/v1/keys")  # also reading them
PREDICT = "/predict"

CORS = b"access-control-allow-origin: %b\r\naccess-control-expose-headers: *\r\nvary: origin\r\n"
HEADERS = b"authorization, content-type, if-match, if-none-match, x-api-key, x-priority, x-progress"
PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
    (b"access-control-max-age", b"600"),
]


def scope_of(method: str, path: str) -> Scope | None:
    """The scope that a request needs, None when any key will do. (Those of OPEN_PATHS need no key.) Models
    may be read by whoever may ask for answers; `predict` is a way to ask."""
    reads = method in ("GET", "HEAD")
    if path in ("/metrics", USAGE) or (reads and path.startswith(TASKS)):
        return None
    if path.startswith(OPERATED):
        return Scope.ADMIN
    asks = method == "POST" and path.endswith(PREDICT)
    return Scope.ADMIN if path.startswith(MANAGED) and not (reads or asks) else Scope.INFERENCE


def needs_no_key(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(DOWNLOAD)  # whoever knows such an address may have it


def priority_of(exchange: Exchange) -> Priority | None:
    """The class that X-Priority asks for, None when it does not. Raises InvalidRequest for an unknown one,
    Forbidden for one above the key's."""
    value = exchange.headers.get(b"x-priority")
    if value is None:
        return None
    try:
        priority = Priority[value.decode("latin-1").strip().upper()]
    except KeyError:
        raise InvalidRequest("X-Priority is low, normal or high.", param="X-Priority") from None
    caller = exchange.caller
    if priority > caller.max_priority:
        most = caller.max_priority.name.lower()
        raise Forbidden(f"The key {caller.name!r} may ask for the priority {most!r} at most.")
    return priority


class Gate:
    """Nobody needs a key until it was told by `take`."""

    def __init__(self) -> None:
        self.take((), hosts=(), origins=(), local=True, is_open=True)

    def take(
        self,
        keys: Sequence[Key],
        *,
        hosts: Iterable[str],
        origins: Iterable[str],
        local: bool,
        is_open: bool,
    ) -> None:
        """Let these in from now on, and nobody else. `local` says that the server listens on loopback only:
        then the Host header must name it (or one of `hosts`), so that a foreign page cannot reach it through
        a name of its own (DNS rebinding). `is_open`: where there is no key, nobody needs one."""
        self._asks = bool(keys) or not is_open
        self._callers = {
            key.digest: Caller(key.name, key.scopes, key.max_priority, key.digest) for key in keys
        }
        self._expiry = {key.digest: key.expires for key in keys if key.expires is not None}
        self._hosts = {host.lower() for host in hosts} | (LOCAL_NAMES if local or hosts else set())
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._good_hosts: set[bytes] = set()
        self._known: dict[bytes, Caller] = {}  # header values that were right, so that hashing is done once

    def admit(self, exchange: Exchange) -> None:
        """Have the exchange tell its caller. Raises HostNotAllowed, OriginNotAllowed, Unauthorized or
        Forbidden; answers a preflight."""
        host = exchange.headers.get(b"host")
        if host is not None and host not in self._good_hosts:
            self._check_host(host)
        origin = exchange.headers.get(b"origin")
        if origin is not None and self._is_foreign(origin, host):
            exchange.also = CORS % origin
            if exchange.method == "OPTIONS" and exchange.headers.get(b"access-control-request-method"):
                # Asked by the browser itself, without a key. Clients send some of their own: x-stainless-…
                asked = exchange.headers.get(b"access-control-request-headers") or HEADERS
                exchange.respond(204, [*PREFLIGHT, (b"access-control-allow-headers", asked)], b"")
                return
        path = exchange.path
        if not self._asks:
            exchange.caller = ANYBODY
        elif not needs_no_key(path):
            sent = _key_of(exchange.headers)
            if sent is not None or path not in KEY_IN_BODY:
                self._admit_caller(exchange, self._caller(sent))

    def admit_with(self, exchange: Exchange, key: object) -> None:
        """Have the exchange of a path of KEY_IN_BODY tell its caller, by the key in its body unless a header
        had one. Raises Unauthorized or Forbidden."""
        if exchange.caller is NOBODY:
            if not isinstance(key, str) or not key:
                raise Unauthorized("No API key: send it as `Authorization: Bearer KEY`, or as `api_key`.")
            self._admit_caller(exchange, self._caller(b"Bearer " + key.encode()))

    @property
    def asks(self) -> bool:
        """Whether anybody needs a key."""
        return self._asks

    def _admit_caller(self, exchange: Exchange, caller: Caller) -> None:
        scope = scope_of(exchange.method, exchange.path)
        if scope is not None and scope not in caller.scopes:
            raise Forbidden(
                f"The key {caller.name!r} has no scope {scope.value!r}, which {exchange.path} needs."
            )
        exchange.caller = caller

    def _caller(self, sent: bytes | None) -> Caller:
        """Whose key was sent. Raises Unauthorized."""
        if sent is None:
            raise Unauthorized("No API key: send it as `Authorization: Bearer KEY`.")
        caller = self._known.get(sent)
        return caller if caller is not None else self._look_up(sent)

    def _look_up(self, sent: bytes) -> Caller:
        scheme, _, rest = sent.partition(b" ")
        secret = rest.strip() if scheme.lower() == b"bearer" else sent
        digest = sha256(secret).hexdigest()
        caller, expires = self._callers.get(digest), self._expiry.get(digest)
        if caller is None:
            raise Unauthorized("The API key is wrong.")
        if expires is None:  # others are looked at each time
            if len(self._known) < CACHE_BOUND:
                self._known[sent] = caller
        elif expires <= time.time():
            raise Unauthorized("The API key has expired.")
        return caller

    def _check_host(self, host: bytes) -> None:
        name = _host_of(f"//{host.decode('latin-1')}")
        if self._hosts and name not in self._hosts:
            raise HostNotAllowed(
                f"The host {name!r} is not allowed here; add it to server.allowed_hosts if it is yours."
            )
        if len(self._good_hosts) < CACHE_BOUND:
            self._good_hosts.add(host)

    def _is_foreign(self, origin: bytes, host: bytes | None) -> bool:
        """Whether the page came from elsewhere and may call all the same. Raises OriginNotAllowed."""
        text = origin.decode("latin-1").lower().rstrip("/")
        if host is not None and text.partition("://")[2] == host.decode("latin-1").lower():
            return False
        if text in self._origins or "*" in self._origins:
            return True
        raise OriginNotAllowed(
            f"Pages from {text} may not call this server; add it to server.allowed_origins if they should."
        )


def _key_of(headers: Headers) -> bytes | None:
    return headers.get(b"authorization") or headers.get(b"x-api-key")


def _host_of(url: str) -> str:
    """The host of a URL, empty when it is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
