"""One request to an engine, and the sink that its answer goes to.

Made by the relay (and by `Pool.fetch`) for each attempt, carried by one connection. Owns what a request
looks like on the wire: which of the caller's headers end here, and that none can break framing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from modelyard.core.types import Address

__all__ = ["HOP_BY_HOP", "LOCAL", "PLAIN_CONNECTION", "Call", "Headers", "Sink", "Target", "tokens"]

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_NOT_SENT = HOP_BY_HOP | {b"content-length", b"expect", b"host"}
PLAIN_CONNECTION = frozenset((b"keep-alive", b"Keep-Alive", b"close"))  # names no further header
_BODILESS = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS"))

# Up to this size the body is copied behind the head, which is cheaper than a second buffer in writev.
_JOINED = 65536


class Sink(Protocol):
    """Receives one answer, synchronously; what it raises ends the call and closes the connection."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The final status and headers: names in lower case, hop-by-hop ones and interim answers left out."""
        ...

    def on_body(self, data: bytes) -> None:
        """The next piece of the body, never empty: all that one read from the socket brought."""
        ...


class Target:
    """What the address of a server adds to the head of each request to it: the beginning of its path, and
    header lines of which Host is the first. Raises ValueError for an address that would break framing."""

    __slots__ = ("base", "lines")

    def __init__(self, address: Address) -> None:
        host = address.authority if address.scheme else "localhost"
        pairs = [("host", host), *address.headers]
        self.base = address.base.encode("ascii")
        self.lines = "".join(f"\r\n{name}: {value}" for name, value in pairs).encode("latin-1")
        if (
            self.lines.count(b"\n") != len(pairs)
            or self.lines.count(b"\r") != len(pairs)
            or b" " in self.base
        ):
            raise ValueError(f"{address} or a header for it holds a space or the end of a line")


LOCAL = Target(Address())


class Call:
    """One request and where its answer goes; good for one `Pool.run`, of the pool whose `target` it has.

    `host` and `content-length` are set here, so the caller's are dropped, as is every hop-by-hop header.
    `written` turns True when request bytes may have left, `head_received` just before `Sink.on_head`.
    Raises ValueError for a request that would break framing (CR, LF or NUL in it, a space in the target).
    """

    __slots__ = ("bodiless", "head_received", "paused", "request", "sink", "transport", "written")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        sink: Sink,
        to: Target = LOCAL,
    ) -> None:
        head = _encode_start(method, target, tuple(headers), to)
        if body or method not in _BODILESS:
            head = b"%bcontent-length: %d\r\n\r\n" % (head, len(body))
        else:
            head += b"\r\n"
        self.request = (head + body,) if len(body) <= _JOINED else (head, body)
        self.sink = sink
        self.bodiless = method == b"HEAD"
        self.written = False
        self.head_received = False
        self.transport: asyncio.Transport | None = None  # set by the connection while it serves this call
        self.paused = False

    def pause(self) -> None:
        """Stop reading the answer; what was read already may still reach the sink once. Idempotent."""
        if not self.paused:
            self.paused = True
            if self.transport is not None:
                self.transport.pause_reading()

    def resume(self) -> None:
        """Go on reading after `pause`. Idempotent."""
        if self.paused:
            self.paused = False
            if self.transport is not None:
                self.transport.resume_reading()


@lru_cache(maxsize=256)  # attempts differ in their body alone
def _encode_start(
    method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...], to: Target
) -> bytes:
    """The request line and the header lines, up to where the content-length goes."""
    if not method or not target or b" " in target or b" " in method:
        raise ValueError(
            f"{method!r} {target!r} is no request line: method and target need to be one word each"
        )
    parts = [method, b" ", to.base, target, b" HTTP/1.1", to.lines]
    lines = 1 + to.lines.count(b"\n")
    named: set[bytes] = set()
    for name, value in headers:
        lowered = name.lower()
        if lowered not in _NOT_SENT:
            parts += (b"\r\n", name, b": ", value)
            lines += 1
        elif lowered == b"connection" and value not in PLAIN_CONNECTION:
            named.update(tokens(value))
    if named:
        # RFC 9110, 7.6.1: the Connection header names further headers that end at the next hop.
        named.add(b"connection")
        kept = tuple(pair for pair in headers if pair[0].lower() not in named)
        return _encode_start(method, target, kept, to)
    parts.append(b"\r\n")
    head = b"".join(parts)
    # One count over the whole head is cheaper than a look at each value.
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise ValueError("a header or the target holds a CR, LF or NUL; such a request is never sent")
    return head


def tokens(value: bytes) -> list[bytes]:
    """The comma-separated names in a header's value, in lower case."""
    return [token.strip().lower() for token in value.split(b",")]
