"""What engines say of their work, asked of every ready instance now and then.

Owned by the driver. For people and metrics: nothing decides by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import fields
from statistics import fmean

import structlog

from modelyard.core.lifecycle import InstanceState
from modelyard.core.state import Instance
from modelyard.engines.base import Work
from modelyard.runtime.resident import Resident
from modelyard.wire.errors import WireError

TIMEOUT = 1.0  # seconds that an engine may take to say it
log = structlog.get_logger(__name__)


class WorkSeen:
    """`of` is what each instance said last."""

    def __init__(
        self, instances: Callable[[], Iterable[Instance]], resident: Callable[[str], Resident | None]
    ) -> None:
        self.of: dict[str, Work] = {}
        self._instances = instances
        self._resident = resident

    async def look(self) -> None:
        """Ask all of them now, at once."""
        ready = [one.id for one in self._instances() if one.state is InstanceState.READY]
        said = await asyncio.gather(*(self._ask(name) for name in ready))
        self.of = {name: work for name, work in zip(ready, said, strict=True) if work is not None}

    def by_version(self) -> dict[str, dict[tuple[str, str], float]]:
        """What is said, by field of Work, then by model and version: the mean of its instances."""
        said: dict[str, dict[tuple[str, str], list[float]]] = {one.name: {} for one in fields(Work)}
        for instance in self._instances():
            if (work := self.of.get(instance.id)) is not None:
                version = instance.version.spec.model, instance.version.key
                for name, values in said.items():
                    if (value := getattr(work, name)) is not None:
                        values.setdefault(version, []).append(value)
        return {
            name: {version: fmean(ones) for version, ones in values.items()} for name, values in said.items()
        }

    async def _ask(self, name: str) -> Work | None:
        resident = self._resident(name)
        endpoint = resident.endpoint if resident is not None else None
        call = endpoint.engine.work() if endpoint is not None else None
        if endpoint is None or call is None:
            return None
        try:
            status, body = await endpoint.pool.fetch(
                call.method, call.path, call.body, timeout=TIMEOUT, limit=4 << 20
            )
        except (WireError, TimeoutError):  # whether it serves is not found out here
            return None
        try:
            return endpoint.engine.read_work(body) if status == 200 else None
        except Exception:  # one bad answer says nothing of the others
            log.exception("work.unreadable", instance=name)
            return None
