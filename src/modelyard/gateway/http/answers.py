"""Answers as bytes: status lines, the Date of this second, header blocks, and the plain form of an error.

Called by the rest of the package. Pure but for the clock of the Date header.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson

from modelyard.errors import ModelyardError

if TYPE_CHECKING:
    from modelyard.gateway.exchange import Exchange, HeaderList

Rendered = tuple[int, list[tuple[bytes, bytes]], bytes]

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


def plain_error(exchange: Exchange, error: ModelyardError) -> Rendered:
    """An error as plain JSON, for paths that belong to no API with a shape of its own."""
    headers = [JSON]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    return error.status, headers, error_body(error.code, error.message, error.kind)


def error_body(code: str, message: str, kind: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "code": code, "param": None}})


def last_words(status: int, code: str, message: str) -> bytes:
    """A whole answer that closes the connection, for what never became an exchange."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = error_body(code, message, kind)
    return b"%bcontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
        status_and_date(status),
        len(body),
        body,
    )
