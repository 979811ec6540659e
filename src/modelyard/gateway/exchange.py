"""One request and its answer, as the inference handlers see it: the contract between them and the server.

Implemented by `gateway/http`; used by every handler of the gateway. Nothing here may name a socket, a
parser or a web framework: what lies under an exchange can change without its handlers noticing.

An answer is either `respond` (whole), or `start`, any number of `write`, and `end`. All of these are
synchronous and never block; a handler that produces faster than its client reads is told by `on_pause` and
`on_resume`, or awaits `drain`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.config import Scope
from modelyard.core.types import Priority

HeaderList = Sequence[tuple[bytes, bytes]]

HIGH_WATER = 1024 * 1024
"""Bytes of one answer that may wait for a slow reader before its handler is asked to pause."""


class Disconnected(Exception):
    """The client left (or was cut) before its answer was finished: nobody is there to be told anything."""


class Stalled(Disconnected):
    """The client did not read for longer than the limit allows, and was cut."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, for logs and limits; `name` is that of the key, `digest` its sha256. Both are
    empty where no key is asked for."""

    name: str
    scopes: frozenset[Scope]
    max_priority: Priority
    digest: str = ""


ANYBODY = Caller("", frozenset(Scope), Priority.HIGH)
NOBODY = Caller("", frozenset(), Priority.LOW)


class Headers:
    """Header fields in the order of their arrival; names are lower-case, values have no outer blanks."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw
        self._first: dict[bytes, bytes] | None = None  # made when it is first needed

    def get(self, name: bytes) -> bytes | None:
        """The first value of a (lower-case) name, or None."""
        first = self._first
        if first is None:
            first = self._first = dict(reversed(self.raw))
        return first.get(name)

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a (lower-case) name, in order."""
        return [value for key, value in self.raw if key == name]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


class Exchange(Protocol):
    """A request whose head has arrived, and the answer to it.

    `path` is percent-decoded, `raw_path` is as sent, `query` is what follows the `?`. `peer` is the client's
    address (`host:port`), empty on a Unix socket; it is for logs and never for access decisions. `also` are
    header lines (each with its line end) that whatever answer there will be carries as well. `caller` is who
    was admitted with it, which holds though the key may be gone by now; NOBODY before that, and on paths that
    are open to all.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    peer: str
    also: bytes
    caller: Caller

    @property
    def started(self) -> bool:
        """True once `respond` or `start` was called: the status can no longer be changed."""
        ...

    @property
    def closed(self) -> bool:
        """True once the client has left before the answer was finished; writes then go nowhere."""
        ...

    async def body(self) -> bytes:
        """The whole request body; a waiting client is told `100 Continue` only now.

        Raises BodyTooLarge (at once when Content-Length says so), RequestTimeout (the body came too slowly),
        TooManyConnections (the server's buffers are full) and Disconnected.
        """
        ...

    async def read(self) -> bytes:
        """The next piece of the request body, empty at its end; not to be mixed with `body`. Raises as
        `body` does."""
        ...

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a complete answer in one write. Names are lower-case; Content-Length is added.

        Raises RuntimeError when an answer has been started, ValueError for a line break in a header.
        """
        ...

    def start(self, status: int, headers: HeaderList) -> None:
        """Begin an answer: chunked unless a content-length is given. Raises as `respond` does."""
        ...

    def write(self, data: bytes) -> None:
        """Send the next bytes of a started answer; what the socket does not take is buffered and counted.

        Raises RuntimeError before `start`, after `end`, and past a content-length that was given.
        """
        ...

    def end(self) -> None:
        """Finish a started answer. One that is shorter than its content-length cuts the connection."""
        ...

    def abort(self) -> None:
        """Cut the connection at once: the client must see that the answer is not whole."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when the client leaves before the answer is finished; at once if it has left."""
        ...

    def on_pause(self, callback: Callable[[], None]) -> None:
        """Call back whenever this answer should stop producing: `HIGH_WATER` bytes wait for the client, or
        all answers together hold too much. At once if it is so already."""
        ...

    def on_resume(self, callback: Callable[[], None]) -> None:
        """Call back whenever this answer may go on after a pause."""
        ...

    async def drain(self) -> None:
        """Wait until no pause is asked for. Raises Disconnected;
        Stalled when the client does not read for longer than the limit."""
        ...


Handler = Callable[[Exchange], Awaitable[None]]
