"""Requests for a model that end before the serve loop knows them: counted, named, and in the journal.

Told of every failure by the server (its `on_failed`), so that a request that is served costs nothing here.
"""

from __future__ import annotations

from modelyard.config import Scope
from modelyard.errors import Forbidden, ModelyardError, Unauthorized
from modelyard.gateway.auth import scope_of
from modelyard.gateway.exchange import Exchange
from modelyard.gateway.inference import ALL_KINDS
from modelyard.gateway.serve import REQUEST_HEADER, request_line
from modelyard.runtime.driver import Driver
from modelyard.runtime.journal_records import Kind
from modelyard.telemetry.metrics import NO_MODEL, Metrics


class EarlyEnds:
    """Call it with the exchange and its error; with None when the client left."""

    def __init__(self, driver: Driver, metrics: Metrics) -> None:
        self._driver = driver
        self._traffic = metrics.traffic(NO_MODEL)

    def __call__(self, exchange: Exchange, error: ModelyardError | None) -> None:
        if (
            exchange.method != "POST"
            or scope_of(exchange.method, exchange.path) is not Scope.INFERENCE
            or REQUEST_HEADER in exchange.also
        ):
            return
        kind = ALL_KINDS.get(exchange.path)
        if kind is not None:
            self._traffic.end(kind, "cancelled" if error is None else error.code)
        # Without a right key none is named: strangers could fill the journal.
        if error is not None and not isinstance(error, Unauthorized | Forbidden):
            request = self._driver.requests.new()
            exchange.also += request_line(request)
            if self._driver.journal is not None:
                self._driver.journal.say(Kind.TURNED_AWAY, request=request, code=error.code)
