"""Answers as bytes: status lines, the Date of this second, header blocks, and the plain form of an error.

Called by the rest of the package; errors by `gateway/api.py` too. Pure but for the clock of the Date header.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING

import orjson

from modelyard.errors import MethodNotAllowed, ModelyardError, Unauthorized

if TYPE_CHECKING:
    from modelyard.gateway.exchange import HeaderList

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_BODILESS = frozenset({204, 304})
# What only this side of the connection can know: a handler may pass on an engine's headers as they are.
_OURS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server", b"upgrade"})
JSON = (b"content-type", b"application/json")


class _Clock:
    """The Date and Server lines, made once a second."""

    __slots__ = ("lines", "second")

    def __init__(self) -> None:
        self.second = -1
        self.lines = b""


_clock = _Clock()


def status_and_date(status: int) -> bytes:
    """The status line and the lines that every answer has."""
    second = int(time.time())
    if second != _clock.second:
        _clock.second = second
        _clock.lines = b"server: modelyard\r\ndate: %b\r\n" % formatdate(second, usegmt=True).encode()
    line = _STATUS_LINES.get(status)
    if line is None:
        line = _STATUS_LINES[status] = b"HTTP/1.1 %d \r\n" % _checked(status)
    return line + _clock.lines


def _checked(status: int) -> int:
    if not 200 <= status <= 999:
        raise ValueError(f"{status} is not the status of an answer")
    return status


def has_body(status: int) -> bool:
    return status not in _BODILESS


def header_block(headers: HeaderList) -> tuple[bytes, int | None]:
    """The header lines without those that are the server's own, and the content-length that they give.

    The content-length itself is left out. Raises ValueError for a line break in a header.
    """
    length: int | None = None
    parts: list[bytes] = []
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
        elif name not in _OURS:
            parts += (name, b": ", value, b"\r\n")
    block, lines = b"".join(parts), len(parts) // 4
    if block.count(b"\n") != lines or block.count(b"\r") != lines:
        raise ValueError("a response header holds a line break")
    return block, length


def error_object(error: ModelyardError) -> dict[str, object]:
    """The value of `error` in a body or an event, in OpenAI's shape: that of all that has none of its own."""
    return {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}


def error_headers(error: ModelyardError) -> list[tuple[bytes, bytes]]:
    """The headers of an error, the same for every API. `x-should-retry` is said where the clients of OpenAI
    and Anthropic would decide otherwise: they retry every 5xx, 408, 409 and 429."""
    headers = [JSON]
    if error.retry_after is not None and error.retryable:
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after))))
    if not error.retryable and (error.status >= 500 or error.status in (408, 409, 429)):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, MethodNotAllowed) and error.allowed:
        headers.append((b"allow", error.allowed.encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def plain_error(error: ModelyardError) -> Answer:
    """An error in OpenAI's shape."""
    return error.status, error_headers(error), orjson.dumps({"error": error_object(error)})


def last_words(error: ModelyardError) -> bytes:
    """A whole answer that closes the connection, for what never became an exchange."""
    status, headers, body = plain_error(error)
    lines, _ = header_block(headers)
    return b"%b%bconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        status_and_date(status),
        lines,
        len(body),
        body,
    )
