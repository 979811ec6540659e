"""The connections to one endpoint, and the choice which of them carries the next request.

One pool per endpoint, made when its instance is ready and closed when it is gone: never one per host and
port, which the next engine may reuse. Called by the relay (`run`) and by probes, warm-up and the driver
(`fetch`). It repeats a request in one case only: a connection from the idle list died before any byte of
an answer, which is how an engine that closes idle connections looks from here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

from modelyard.core.types import Address
from modelyard.wire.call import Target
from modelyard.wire.connection import Call, Connection, Headers
from modelyard.wire.errors import Broken, ConnectFailed, NotTrusted, ProtocolError

__all__ = ["Pool"]

CONNECT_TIMEOUT = 5.0  # seconds
IDLE = 4.0  # seconds; below what llama.cpp and uvicorn allow (5 s), so that we close first
IDLE_TLS = 30.0  # seconds; whoever is elsewhere allows more, and a new one costs a look-up and a handshake
MAX_HEAD = 64 * 1024  # bytes of the head of an answer


class Pool:
    """Keep-alive connections to one engine, the last used first; every call has this pool's `target`.

    `idle_limit` is in seconds (default: IDLE, or IDLE_TLS with TLS). All of it runs on one event loop.
    """

    def __init__(
        self,
        address: Address,
        *,
        idle_limit: float | None = None,
        max_idle: int = 256,
    ) -> None:
        self.address = address
        self.target = Target(address)
        self._tls: ssl.SSLContext | None = None
        self._peer = str(address)
        usual = IDLE_TLS if address.scheme == "https" else IDLE
        self._idle_limit = usual if idle_limit is None else idle_limit
        self._max_idle = max_idle
        self._loop: asyncio.AbstractEventLoop
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []  # by time of release, the oldest first
        self._sweeper: asyncio.TimerHandle | None = None
        self._connects: set[asyncio.Timeout] = set()
        self._closed = False

    @property
    def open(self) -> int:
        """The number of connections, idle ones included."""
        return len(self._all)

    @property
    def idle(self) -> int:
        """The number of connections that wait for a request."""
        return len(self._idle)

    async def run(self, call: Call) -> None:
        """Send the request and return when the whole answer has reached the sink.

        With an idle connection at hand the request is written before the first suspension. Cancelling closes
        the connection. Raises ConnectFailed, Broken, ProtocolError, or what the sink raised; has no deadline
        of its own beyond that of connecting.
        """
        if call.written:
            raise RuntimeError("a Call is good for one run; make a new one for each attempt")
        connection = self._take()
        reused = connection is not None
        if connection is None:
            connection = await self._connect()
        while True:
            done = connection.start(call)
            try:
                await done
            except Broken as broken:
                if not reused or broken.answered or self._closed:
                    raise
            except BaseException:
                connection.abandon(call)
                if done.done() and not done.cancelled():
                    done.exception()  # a failure in the very step of the cancelling: nobody else reads it
                raise
            else:
                return
            reused = False
            connection = await self._connect()

    async def fetch(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        timeout: float,
        limit: int = 1 << 20,
        cut: bool = False,
    ) -> tuple[int, bytes]:
        """One small exchange as (status, body); a body is sent as JSON. With `cut`, an answer of more than
        `limit` bytes is read no further than that.

        Raises TimeoutError after `timeout` seconds, ProtocolError for an answer of more than `limit` bytes,
        and what `run` raises.
        """
        answer = _Answer(self._peer, limit)
        headers = [(b"content-type", b"application/json")] if body else []
        call = Call(method.encode("ascii"), path.encode("ascii"), headers, body, answer, self.target)
        async with asyncio.timeout(timeout):
            try:
                await self.run(call)
            except _TooLong:
                if not cut:
                    raise
        return answer.status, b"".join(answer.parts)

    def close(self) -> None:
        """Close every connection now; running calls fail with Broken, later ones with ConnectFailed."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for deadline in self._connects:
            deadline.reschedule(self._loop.time())
        for connection in tuple(self._all):
            connection.close()

    # -- connections -------------------------------------------------------------------------------------

    def _take(self) -> Connection | None:
        idle = self._idle
        if not idle:
            return None
        connection = idle.pop()
        if self._loop.time() - connection.released < self._idle_limit:
            return connection
        connection.close()
        while idle:  # all others have been idle for longer
            idle.pop().close()
        return None

    async def _connect(self) -> Connection:
        if self._closed:
            raise ConnectFailed(f"the pool of {self._peer} is closed: its engine is gone")
        self._loop = asyncio.get_running_loop()
        deadline = asyncio.timeout(CONNECT_TIMEOUT)
        try:
            async with deadline:
                self._connects.add(deadline)
                connection = await self._open(deadline)
        except TimeoutError as error:
            if self._closed:
                raise Broken(
                    f"the pool of {self._peer} was closed while connecting", answered=False
                ) from None
            raise ConnectFailed(f"{self._peer} took no connection in {CONNECT_TIMEOUT:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise NotTrusted(
                f"the certificate of {self._peer} is not trusted: {error.verify_message}"
            ) from error
        except (OSError, UnicodeError) as error:  # the latter for a name that none can be
            raise ConnectFailed(f"cannot connect to {self._peer}: {error}") from error
        finally:
            self._connects.discard(deadline)
        if self._closed:
            connection.close()
            raise Broken(f"the pool of {self._peer} was closed while connecting", answered=False)
        # Counted from here on: uvloop makes the protocol before it connects, and drops it in silence.
        if not connection.gone:
            self._all.add(connection)
        return connection

    async def _open(self, deadline: asyncio.Timeout) -> Connection:
        """A connection to the address, or to the first of those that its name has which takes one; they
        share the time until the deadline. Raises OSError, TimeoutError, UnicodeError."""
        loop, address = self._loop, self.address
        if address.path:
            _, connection = await loop.create_unix_connection(self._make, address.path)
            return connection
        if not address.scheme:
            _, connection = await loop.create_connection(self._make, address.host, address.port)
            return connection
        if address.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(_trusting, address.ca)
        name = address.host if self._tls is not None else None
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        for left, (*_, place) in zip(range(len(found), 0, -1), found, strict=True):
            at, port = str(place[0]), int(place[1])
            try:
                async with asyncio.timeout(((deadline.when() or 0.0) - loop.time()) / left):
                    _, connection = await loop.create_connection(
                        self._make, at, port, ssl=self._tls, server_hostname=name
                    )
                    return connection
            except ssl.SSLCertVerificationError:  # what another one fails of would hide it
                raise
            except (OSError, TimeoutError) as error:
                failure = error
        raise failure

    def _make(self) -> Connection:
        return Connection(self._peer, MAX_HEAD, self._on_idle, self._on_gone)

    def _on_idle(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= self._max_idle or connection.transport.is_closing():
            connection.close()
            return
        connection.released = self._loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_limit, self._sweep)

    def _on_gone(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what has been idle for too long; runs while anything is idle, never per connection."""
        self._sweeper = None
        oldest = self._loop.time() - self._idle_limit
        while self._idle and self._idle[0].released <= oldest:
            self._idle[0].close()
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0].released + self._idle_limit, self._sweep)


def _trusting(ca: str) -> ssl.SSLContext:
    """Certificates are checked against those of this file, empty: against those that the machine trusts.
    Raises NotTrusted for a file that has none. Reads from the disk."""
    import certifi  # noqa: PLC0415 - most engines are on this machine

    try:
        if ca:
            text = Path(ca).read_text("ascii")
            if not text:  # else it would be those that the machine trusts
                raise ValueError("it is empty")
            return ssl.create_default_context(cadata=text)
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())  # a machine may have none of its own
    except (OSError, ValueError) as error:
        raise NotTrusted(f"{ca} cannot be read as PEM certificates: {error}") from error
    return context


class _TooLong(ProtocolError):
    """The answer has more bytes than it may have; its connection is closed."""


class _Answer:
    """Collects a small answer."""

    def __init__(self, peer: str, limit: int) -> None:
        self.status = 0
        self.parts: list[bytes] = []
        self._peer = peer
        self._limit = limit
        self._left = limit

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status

    def on_body(self, data: bytes) -> None:
        self._left -= len(data)
        self.parts.append(data)
        if self._left < 0:
            raise _TooLong(f"{self._peer} sent more than {self._limit} bytes where a short answer was due")
