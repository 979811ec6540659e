"""The HTTP/1.1 server of the gateway: listens, routes, runs one task per request, and stops in order.

Built by `compose`, which gives it the lanes (`handler_for`), the control surface (`asgi_app`), the checks
that come before any body is read (`admit`) and the shape of errors (`render_error`). It knows no API, and
never decides who may do what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import nsmallest
from math import inf
from pathlib import Path

import structlog

from modelyard.core.types import Address
from modelyard.errors import InternalError, ModelyardError
from modelyard.gateway.exchange import Disconnected, Exchange, Handler
from modelyard.gateway.http.answers import Answer, plain_error
from modelyard.gateway.http.asgi import AsgiApp, bridge
from modelyard.gateway.http.connection import Connection
from modelyard.gateway.http.limits import Limits
from modelyard.gateway.http.served import ServedExchange

_log = structlog.get_logger(__name__)

_TURNED_AWAY = 64  # connections over the limit that are told so at one time; the rest are cut unanswered
_FOUND = 64  # idle connections that one search finds
_SEARCH_AGAIN = 0.1  # seconds until the next one when there was none
_RELIEF = 0.8  # the part of the buffer bound under which paused answers go on
_BACKLOG = 2048


def _admit_all(exchange: Exchange) -> None:
    return None


def _render_plain(exchange: Exchange, error: ModelyardError) -> Answer:
    return plain_error(error)


def _tell_nobody(exchange: Exchange, error: ModelyardError | None) -> None:
    return None


class Server:
    """Serves exchanges on one address.

    `handler_for(method, path)` names the handler of a lane, or None for the ASGI application; it and
    `admit(exchange)` run before the body is read and may raise ModelyardError; `admit` may also answer.
    `render_error` gives status, headers and body of an error in the shape of the API that was called;
    `on_failed` is told before of every request that fails, with None when its client left.
    """

    def __init__(
        self,
        handler_for: Callable[[str, str], Handler | None],
        asgi_app: AsgiApp,
        limits: Limits | None = None,
        *,
        admit: Callable[[Exchange], None] = _admit_all,
        render_error: Callable[[Exchange, ModelyardError], Answer] = _render_plain,
        on_failed: Callable[[Exchange, ModelyardError | None], None] = _tell_nobody,
    ) -> None:
        self.limits = limits or Limits()
        self.stopping = False
        self.buffered = 0  # bytes of request bodies and unsent answers, over all connections
        self._handler_for = handler_for
        self._bridge = bridge(asgi_app, self)
        self._admit = admit
        self._render_error = render_error
        self._on_failed = on_failed
        self._connections: set[Connection] = set()
        self._idle: list[tuple[float, int, Connection]] = []  # found idle, and since when; the oldest last
        self._search_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._address = Address()
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop

    # -- life ------------------------------------------------------------------------------------------

    async def start(self, address: Address) -> None:
        """Listen on a Unix socket (`path`) or on `host` and `port` (0: any free one). Raises OSError."""
        assert self._listener is None, "a server is started once"
        self._loop = loop = asyncio.get_running_loop()
        self._emptied = asyncio.Event()
        if address.path:
            self._listener = await loop.create_unix_server(self._connect, address.path, backlog=_BACKLOG)
            self._address = address
        else:
            self._listener = await loop.create_server(
                self._connect, address.host, address.port, backlog=_BACKLOG
            )
            port = self._listener.sockets[0].getsockname()[1]
            self._address = Address(host=address.host, port=port)
        self._timer = loop.call_later(self.limits.sweep, self._sweep)

    @property
    def address(self) -> Address:
        """Where it listens; the port is the real one."""
        return self._address

    @property
    def connections(self) -> int:
        """Open connections, those that are being closed included."""
        return len(self._connections)

    async def stop(self, grace: float) -> None:
        """Stop accepting, close idle connections, let running exchanges finish for `grace` seconds, then
        cut what is left. Returns when no connection and no handler is left."""
        self._stop_accepting()
        for connection in list(self._connections):
            connection.close_idle()
        deadline = self._loop.time() + grace
        if self._connections:
            assert self._emptied is not None
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), grace)
            except TimeoutError:
                _log.warning("exchanges_cut_at_stop", connections=len(self._connections), grace=grace)
        if not self._connections and self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - self._loop.time()))
        await self.close_now()

    async def close_now(self) -> None:
        """Cut every connection and cancel every handler. Returns when all of them have ended."""
        self._stop_accepting()
        for connection in list(self._connections):
            connection.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connections and self._emptied is not None:
            self._emptied.clear()
            await self._emptied.wait()  # a transport reports its end one turn of the loop after it was cut
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_accepting(self) -> None:
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if self._address.path:
                Path(self._address.path).unlink(missing_ok=True)

    # -- connections -----------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        return Connection(self, self._loop)

    def enter(self, connection: Connection) -> bool:
        """Count a new connection; False when it is one too many, and none that is kept for nothing can go."""
        open_now = len(self._connections)
        self._connections.add(connection)
        if open_now < self.limits.connections or self._make_room():
            return True
        if open_now >= self.limits.connections + _TURNED_AWAY:
            connection.cut()
        return False

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest after an answer. Whether there was one."""
        while self._idle or self._find_idle():
            since, _, connection = self._idle.pop()
            if connection.idle_since == since:  # else it was used, or closed
                connection.close_idle()
                return True
        return False

    def _find_idle(self) -> bool:
        now = self._loop.time()
        if now < self._search_at:
            return False
        idle = ((each.idle_since, id(each), each) for each in self._connections)
        self._idle = nsmallest(_FOUND, (found for found in idle if found[0] < inf))
        self._idle.reverse()
        if not self._idle:
            self._search_at = now + _SEARCH_AGAIN
        return bool(self._idle)

    def leave(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.discard(connection)
        if not self._connections and self._emptied is not None:
            self._emptied.set()

    def _sweep(self) -> None:
        self._timer = self._loop.call_later(self.limits.sweep, self._sweep)
        now = self._loop.time()
        for connection in list(self._connections):
            try:
                connection.sweep(now)
                if self.buffered < self.limits.buffered * _RELIEF:
                    connection.relieve()
            except Exception:  # the deadlines of all the others go on
                _log.exception("sweep_failed")
                connection.cut()

    # -- exchanges -------------------------------------------------------------------------------------

    def handle(self, exchange: ServedExchange) -> None:
        """Admit an exchange and run its handler as a task; a refusal is answered here and now."""
        try:
            self._admit(exchange)
            if exchange.finished:
                return
            handler = self._handler_for(exchange.method, exchange.path) or self._bridge
        except ModelyardError as error:
            self._fail(exchange, error)
            return
        except Exception:
            self._fail_unexpected(exchange)
            return
        exchange.task = task = self._loop.create_task(self._run(exchange, handler))
        self._tasks.add(task)

    async def _run(self, exchange: ServedExchange, handler: Handler) -> None:
        try:
            await handler(exchange)
            if not exchange.finished and not exchange.closed:
                raise RuntimeError("the handler returned before its answer was finished")
        except Disconnected:
            self._on_failed(exchange, None)
            exchange.abort()
        except ModelyardError as error:
            self._fail(exchange, error)
        except asyncio.CancelledError:
            exchange.abort()
            raise
        except Exception:
            self._fail_unexpected(exchange)
        finally:
            if exchange.task is not None:
                self._tasks.discard(exchange.task)

    def _fail_unexpected(self, exchange: ServedExchange) -> None:
        _log.exception("handler_failed", method=exchange.method, path=exchange.path)
        self._fail(exchange, InternalError("The server failed on this request; its log says why."))

    def _fail(self, exchange: ServedExchange, error: ModelyardError) -> None:
        self._on_failed(exchange, error)
        if exchange.finished or exchange.closed:
            return
        if exchange.started:
            exchange.abort()
            return
        try:
            status, headers, body = self._render_error(exchange, error)
        except Exception:
            _log.exception("error_not_rendered", code=error.code)
            status, headers, body = plain_error(error)
        exchange.respond(status, headers, body)
