"""What a request's head says about framing: one reading of it, or a refusal.

Called by the reader with the fields that the parser found. llhttp already refuses folded lines, bare LF,
NUL, blanks before the colon, and every doubtful Content-Length; what it lets through is refused here:
repeated or missing Host, repeated Transfer-Encoding, targets that are not a path, other versions than 1.0
and 1.1. Two readers of one message must never disagree about where it ends, so nothing is repaired.

A client on a kept connection says the same with every request, but for the length of the body: `Repeated`
spares such heads the parser.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from modelyard.errors import ExpectationFailed, InvalidRequest
from modelyard.gateway.exchange import Headers


class Framing(NamedTuple):
    """Where the body ends, and what happens after the answer. `length` is None for a chunked body."""

    length: int | None
    keep_alive: bool
    expecting: bool


class Target(NamedTuple):
    path: str
    raw_path: bytes
    query: bytes


LENGTH = b"content-length"
FRAMING_FIELDS = frozenset(
    {b"host", LENGTH, b"transfer-encoding", b"connection", b"expect"},
)
"""The names whose fields `read_framing` wants to see."""

_LENGTH_LINE = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
_DIGITS_MAX = 18


@lru_cache(maxsize=256)  # clients ask for the same few paths
def read_target(url: bytes) -> Target:
    """Split and decode a request target. Raises InvalidRequest unless it is a path in UTF-8."""
    if not url.startswith(b"/"):
        raise InvalidRequest("The request target must be a path that begins with '/'.")
    raw_path, _, query = url.partition(b"?")
    if b"#" in url or not url.isascii():
        raise InvalidRequest("The request target holds a character that must be percent-encoded.")
    if b"%" not in raw_path:
        return Target(raw_path.decode("ascii"), raw_path, query)
    try:
        path = unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("The path is not UTF-8 once percent-decoded.") from None
    if "\0" in path:
        raise InvalidRequest("The path holds a NUL.")
    return Target(path, raw_path, query)


def read_framing(fields: list[tuple[bytes, bytes]], http_11: bool) -> Framing:
    """Decide framing and persistence from the fields named in `FRAMING_FIELDS`. Raises RequestError."""
    hosts = 0
    length: int | None = 0
    lengths = codings = 0
    keep_alive, expecting = http_11, False
    for name, value in fields:
        if name == b"host":
            hosts += 1
            if _HOST.fullmatch(value) is None:
                raise InvalidRequest("The Host header is not a host name with an optional port.")
        elif name == LENGTH:
            lengths += 1
            length = _length(value)
        elif name == b"connection":
            keep_alive = _persists(value.lower(), keep_alive)
        elif name == b"transfer-encoding":
            codings += 1
            if value.lower() != b"chunked":
                raise InvalidRequest("The only Transfer-Encoding taken is 'chunked'.")
        else:
            if value.lower() != b"100-continue":
                raise ExpectationFailed("The only Expect taken is '100-continue'.")
            expecting = http_11
    if hosts > 1 or (not hosts and http_11):
        raise InvalidRequest("A request needs exactly one Host header.")
    if lengths > 1 or codings > 1 or (lengths and codings):
        raise InvalidRequest("A request states the length of its body once: Content-Length or chunked.")
    if codings:
        if not http_11:
            raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding.")
        length = None
    return Framing(length, keep_alive, expecting and length != 0)


def _length(value: bytes) -> int:
    if not value.isdigit() or len(value) > _DIGITS_MAX:
        raise InvalidRequest("Content-Length is not a number of bytes.")
    return int(value)


def _persists(value: bytes, keep_alive: bool) -> bool:
    if value == b"keep-alive":
        return True
    if value == b"close":
        return False
    tokens = {token.strip() for token in value.split(b",")}
    if b"close" in tokens:
        return False
    return keep_alive or b"keep-alive" in tokens


class Head(NamedTuple):
    """A request's head that was read and found good."""

    method: str
    target: Target
    headers: Headers
    framing: Framing
    http_11: bool


REPEATED_MOST = 4096  # bytes of a head that is kept for comparison, per connection


class Repeated:
    """A head with a counted body, to compare the next ones of its connection with.

    Sound because nothing but the digits between two fixed ends may differ, and those are the value of the
    one Content-Length: every other field, and where each of them ends, is as it was when it was parsed.
    """

    __slots__ = ("_after", "_at", "_before", "_digits", "_head", "_room")

    def __init__(self, raw: bytes, head: Head, line: re.Match[bytes]) -> None:
        self._before = raw[: line.start(1)]
        self._after = raw[line.end(1) :]
        self._digits = line[1]
        self._room = len(self._before) + len(self._after)
        self._head = head
        self._at = next(at for at, (name, _) in enumerate(head.headers) if name == LENGTH)

    @classmethod
    def of(cls, raw: bytes, head: Head) -> Repeated | None:
        """What to compare the next head with; None if this one is no pattern for others."""
        framing = head.framing
        if not framing.length or not framing.keep_alive or framing.expecting or len(raw) > REPEATED_MOST:
            return None
        line = _LENGTH_LINE.search(raw)
        return None if line is None else cls(raw, head, line)

    def read(self, raw: bytes) -> Head | None:
        """The head that these bytes are if they differ in the length's digits alone, else None."""
        before, after = self._before, self._after
        if not raw.startswith(before) or not raw.endswith(after):
            return None
        digits = raw[len(before) : len(raw) - len(after)]
        if digits == self._digits:
            return self._head if len(raw) > self._room else None
        if len(raw) <= self._room or not digits.isdigit() or len(digits) > _DIGITS_MAX:
            return None
        method, target, known, framing, http_11 = self._head
        headers = known.raw.copy()
        headers[self._at] = (LENGTH, digits)
        return Head(method, target, Headers(headers), framing._replace(length=int(digits)), http_11)
