"""`POST /api/pull`: fetch the files of a configured model ahead, and say how far it has come.

Called by the inference lanes. Nothing can be pulled that is not configured.
"""

from __future__ import annotations

import asyncio

import orjson

from modelyard.errors import ModelyardError
from modelyard.gateway.api import OLLAMA
from modelyard.gateway.exchange import Disconnected, Exchange
from modelyard.gateway.http.answers import JSON
from modelyard.gateway.interrupt import Interrupt, Interrupted
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry, Progress

EVERY = 0.5  # seconds between two lines, at least


class Pull:
    """One pull. A client that leaves ends it; what has arrived is used by the next one."""

    def __init__(self, driver: Driver, exchange: Exchange, entry: Entry, *, stream: bool) -> None:
        self._driver = driver
        self._exchange = exchange
        self._entry = entry
        self._stream = stream
        self._last = 0.0

    async def run(self) -> None:
        """Answer the request. Raises what the fetch failed with while nothing was answered, Disconnected."""
        interrupt = Interrupt()
        self._exchange.on_close(interrupt.depart)
        if interrupt.departed:
            raise Disconnected
        if self._stream:
            self._exchange.start(200, [(b"content-type", OLLAMA.media), (b"cache-control", b"no-cache")])
            self._line(status="pulling manifest")
        try:
            with interrupt:
                await self._driver.fetch(self._entry, self._tell)
        except Interrupted:
            raise Disconnected from None
        except ModelyardError as error:
            if not self._stream:
                raise
            self._exchange.write(OLLAMA.error_event(error))
            self._exchange.end()
            return
        if self._stream:
            self._line(status="success")
            self._exchange.end()
        else:
            self._exchange.respond(200, [JSON], orjson.dumps({"status": "success"}))

    def _tell(self, progress: Progress) -> None:
        now = asyncio.get_running_loop().time()
        ended = progress.done == progress.total
        if not self._stream or self._exchange.closed or (now - self._last < EVERY and not ended):
            return
        self._last = now
        digest = self._entry.spec.digest
        told: dict[str, object] = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}"}
        if progress.total is not None:
            told["total"] = progress.total
        self._line(**told, completed=progress.done)

    def _line(self, **fields: object) -> None:
        self._exchange.write(orjson.dumps(fields) + b"\n")
