"""A request that one of our own handlers makes of a model, on behalf of a client's.

Made by the translation lane for each step; the serve loop takes it for a client's request, with the leases,
waits, retries and limits of one; the answer is read by the demand's `reshape`, and goes nowhere. Several may
run at once: whoever makes them has them `leave` when the client does, of which an exchange tells one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from modelyard.errors import ModelyardError
from modelyard.gateway.exchange import Disconnected, Exchange, HeaderList, Headers
from modelyard.gateway.http.answers import JSON, Answer


class Inner:
    """Implements `modelyard.gateway.exchange.Exchange`."""

    def __init__(self, outer: Exchange) -> None:
        self._outer = outer
        self._left = False
        self._told_of_close: list[Callable[[], None]] = []
        self.method, self.path, self.raw_path, self.query = "POST", outer.path, outer.raw_path, b""
        self.headers, self.peer, self.caller = Headers([]), outer.peer, outer.caller
        self.also = b""
        self.started = False
        self.answered: HeaderList = ()

    @property
    def closed(self) -> bool:
        return self._left or self._outer.closed

    async def body(self) -> bytes:
        return b""

    async def read(self) -> bytes:
        return b""

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        self.start(status, headers)
        self.write(body)

    def start(self, status: int, headers: HeaderList) -> None:
        self.started, self.answered = True, headers

    def write(self, data: bytes) -> None:
        """`reshape` has read it."""

    def end(self) -> None:
        """The answer is whole."""

    def abort(self) -> None:
        """Whoever made it has nothing that could be cut."""

    def leave(self) -> None:
        """Nobody wants the answer any more: as when the client leaves."""
        self._left = True
        for callback in self._told_of_close:
            callback()

    def on_close(self, callback: Callable[[], None]) -> None:
        if self.closed:
            callback()
        else:
            self._told_of_close.append(callback)

    def on_pause(self, callback: Callable[[], None]) -> None:
        """Never: nothing of the answer is kept here."""

    def on_resume(self, callback: Callable[[], None]) -> None:
        """Likewise."""

    async def drain(self) -> None:
        if self.closed:
            raise Disconnected


class Told:
    """An `Api` that keeps the error that it is told of."""

    media: ClassVar[bytes] = b"application/json"
    heartbeat: ClassVar[bytes] = b""
    progress: ClassVar[Mapping[str, object] | None] = None

    def __init__(self) -> None:
        self.told: ModelyardError | None = None

    def error(self, error: ModelyardError) -> Answer:
        self.told = error
        return error.status, [JSON], b""

    def error_event(self, error: ModelyardError) -> bytes:
        self.told = error
        return b""

    def refusal(self, status: int, error: ModelyardError) -> bytes:
        self.told = error
        return b""
