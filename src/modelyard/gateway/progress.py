"""Progress of requests that wait, as events in their own streams: what `X-Progress: sse` asks for.

Called by the inference lanes (`wanted`) and by the serve loop, which follows a wait from begin to end.
It reads the scheduling state between events and changes nothing; nobody who did not ask pays for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from modelyard.core.lifecycle import FilesState, InstanceState
from modelyard.core.outlook import usual
from modelyard.core.state import LEAVING, Version
from modelyard.core.types import Spec
from modelyard.errors import InvalidRequest
from modelyard.gateway.api import Api
from modelyard.gateway.exchange import Exchange, Headers
from modelyard.runtime.driver import Driver

HEADER = b"x-progress"
EVERY = 0.5  # seconds between two looks at what changed
BEAT = 5.0  # seconds without an event, at most

Json = dict[str, Any]


def wanted(headers: Headers, stream: bool, api: Api) -> bool:
    """Whether the client asks for progress events. Raises InvalidRequest where it cannot have any."""
    value = headers.get(HEADER)
    if value is None:
        return False
    if value.strip().lower() != b"sse":
        raise InvalidRequest("X-Progress is `sse`, or absent.", param="X-Progress")
    if api.progress is None:
        raise InvalidRequest(
            "X-Progress: sse needs a stream of server-sent events; those of Ollama's API are lines of JSON.",
            param="X-Progress",
        )
    if not stream:
        raise InvalidRequest("X-Progress: sse needs a stream: set `stream` to true.", param="X-Progress")
    return True


@dataclass(slots=True, eq=False)
class _Follower:
    """A request that waits, and what its client was told last, and when."""

    exchange: Exchange
    api: Api
    request: str
    told: Json = field(default_factory=dict)
    told_at: float = 0.0


class Progress:
    """Tells every waiting client that asked how far its request has come: at once, when something has changed
    (looked at each EVERY seconds, for all together), and each BEAT seconds when nothing has."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._followers: dict[str, dict[str, _Follower]] = {}  # by version and request
        self._fetches: dict[str, tuple[float, int]] = {}  # by version: when a fetch was first seen, its bytes
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def follow(self, exchange: Exchange, api: Api, request: str, spec: Spec) -> Iterator[None]:
        """Tell the progress of a request that waits for this version while this lasts, and that it is served
        when this ends without an exception."""
        version = spec.version
        begun = self._loop.time()
        if not exchange.started:
            exchange.start(200, [(b"content-type", api.media), (b"cache-control", b"no-cache")])
        follower = _Follower(exchange, api, request)
        self._followers.setdefault(version, {})[request] = follower
        if self._timer is None:
            self._timer = self._loop.call_later(EVERY, self._look)
        self._loop.call_soon(self._tell, version, {request: follower})
        try:
            yield
        finally:
            others = self._followers[version]
            del others[request]
            if not others:
                del self._followers[version]
                self._fetches.pop(version, None)
        serving = {"request": request, "model": spec.model, "state": "serving"}
        _write(exchange, api, serving | {"waited": round(self._loop.time() - begun, 3)})

    def _look(self) -> None:
        self._timer = self._loop.call_later(EVERY, self._look) if self._followers else None
        for version, followers in self._followers.items():
            self._tell(version, followers)

    def _tell(self, key: str, followers: dict[str, _Follower]) -> None:
        """Write an event to those of one version for whom something has changed. O(its queue)."""
        state, now = self._driver.scheduler.state, self._loop.time()
        version = state.versions.get(key)
        if version is None:
            return
        stage, first_token = self._stage(version), self._first_token(key)
        for position, waiting in enumerate(version.queue, 1):
            follower = followers.get(waiting.request)
            if follower is None:
                continue
            news = {**stage, "position": position}
            if news == follower.told and now - follower.told_at < BEAT:
                continue
            follower.told, follower.told_at = news, now
            waited = now - waiting.queued_at
            eta = self._eta(version, position, waiting.estimate - waited, now)
            eta = None if eta is None else round(max(0.0, eta) + first_token, 3)
            clock = {"waited": round(waited, 3), "eta": eta}
            _write(follower.exchange, follower.api, {"request": waiting.request, **news, **clock})

    def _stage(self, version: Version) -> Json:
        """What is the same for all who wait for this version, but for the time."""
        state = self._driver.scheduler.state
        model, key = version.spec.model, version.key
        stage: Json = {"model": model, "state": "queued", "line": None, "waiting_for": "", "victims": []}
        if version.files is FilesState.FETCHING:
            done, total = self._fetched(key)
            return stage | {"state": "fetching", "bytes": done, "total": total}
        self._fetches.pop(key, None)
        states = {instance.state for instance in version.instances.values()}
        if InstanceState.READY in states:
            return stage | {"waiting_for": "a slot"}
        if InstanceState.WARMING in states:
            return stage | {"state": "warming"}
        if InstanceState.STARTING in states:
            return stage | {"state": "loading"}
        if InstanceState.WAKING in states:
            return stage | {"state": "waking"}
        stage["line"] = next((place for place, (_, name) in enumerate(state.line, 1) if name == key), None)
        stage["waiting_for"] = version.blocked_by
        leaving = [other for other in state.instances.values() if other.leaving_for == key]
        stage["victims"] = [
            {
                "instance": other.id,
                "model": other.version.spec.model,
                "state": other.state.value,
                "running": len(other.leases),
            }
            for other in leaving
            if other.state in LEAVING
        ]
        return stage | {"state": "swapping"} if stage["victims"] else stage

    def _first_token(self, key: str) -> float:
        """Seconds from a slot to the first token, as the past tells; 0 while it tells nothing."""
        entry = self._driver.entries.get(key)
        _, usual = (None, None) if entry is None else self._driver.observer.timings(entry)
        return 0.0 if usual is None else usual.median

    def _fetched(self, key: str) -> tuple[int, int | None]:
        progress = self._driver.progress.get(key)
        return (0, None) if progress is None else (progress.done, progress.total)

    def _eta(self, version: Version, position: int, estimate: float, now: float) -> float | None:
        """Seconds until the request is served, as the past tells; None where it does not. `estimate` is
        what is left of that at its arrival."""
        if version.ready:
            return -(-position // (version.capacity * len(version.ready))) * version.service_seconds
        later = (version.turns(position) - 1) * version.service_seconds
        if version.files is FilesState.FETCHING:
            left = self._transfer_left(version.key, now)
            return None if left is None else left + (version.load_seconds or 0.0) + later
        if version.load_seconds is None:
            return None
        if live := version.live():
            first = min(live, key=lambda instance: instance.started_at)
            return max(0.0, usual(first) - (now - first.started_at)) + later
        return estimate

    def _transfer_left(self, key: str, now: float) -> float | None:
        """Seconds that a fetch will go on, at the rate since it was first seen here."""
        done, total = self._fetched(key)
        since, before = self._fetches.setdefault(key, (now, done))
        if total is None or done <= before or now <= since:
            return None
        return (total - done) * (now - since) / (done - before)


def _write(exchange: Exchange, api: Api, news: Json) -> None:
    event = {"type": "progress", **(api.progress or {}), **news}
    exchange.write(b"event: progress\ndata: %b\n\n" % orjson.dumps(event))
