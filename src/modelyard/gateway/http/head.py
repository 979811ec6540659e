"""What a request's head says about framing: one reading of it, or a refusal.

Called by the reader with the fields that the parser found. llhttp already refuses folded lines, bare LF,
NUL, blanks before the colon, and every doubtful Content-Length; what it lets through is refused here:
repeated or missing Host, repeated Transfer-Encoding, targets that are not a path, other versions than 1.0
and 1.1. Two readers of one message must never disagree about where it ends, so nothing is repaired.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from modelyard.errors import ExpectationFailed, InvalidRequest


class Framing(NamedTuple):
    """Where the body ends, and what happens after the answer. `length` is None for a chunked body."""

    length: int | None
    keep_alive: bool
    expecting: bool


class Target(NamedTuple):
    path: str
    raw_path: bytes
    query: bytes


FRAMING_FIELDS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"},
)
"""The names whose fields `read_framing` wants to see."""

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
        elif name == b"content-length":
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
