"""An endpoint: an instance's live address with its connection pool. Made when it is launched, closed when it
stops.

Owned by the driver; the relay sends its attempts through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelyard.core.types import Address, Spec
from modelyard.engines.base import Engine
from modelyard.wire.pool import Pool

QUIESCE_CAP = 10.0  # seconds after which an abandoned request counts as stopped, whatever the engine says


class Endpoint:
    """`active` counts attempts that are under way; requests that the engine still runs beyond those are ones
    whose client has left. `headers` name version and instance in every answer. `on_first_token` is called
    once, with the seconds until the first streamed answer began. `dead`: its server has answered that the
    engine behind it has ended."""

    __slots__ = (
        "active",
        "address",
        "dead",
        "engine",
        "headers",
        "instance",
        "on_first_token",
        "pool",
        "spec",
    )

    def __init__(self, instance: str, spec: Spec, engine: Engine, address: Address, pool: Pool) -> None:
        self.instance = instance
        self.spec = spec
        self.engine = engine
        self.address = address
        self.pool = pool
        self.active = 0
        self.dead = False
        self.on_first_token: Callable[[float], None] | None = None
        self.headers = (
            (b"x-modelyard-version", spec.version.encode()),
            (b"x-modelyard-instance", instance.encode()),
        )

    def began(self, seconds: float) -> None:
        """A streamed answer began so many seconds after its lease was granted."""
        tell, self.on_first_token = self.on_first_token, None
        if tell is not None:
            tell(seconds)

    async def quiesce(self) -> bool | None:
        """Return once the engine runs no more than the attempts under way, at most QUIESCE_CAP later. True
        when the engine itself said so, False when it said until then that it runs more, None when it cannot
        tell. Raises WireError or TimeoutError when it does not answer.

        Called after an attempt was abandoned: its slot is free only when the engine has noticed. An engine
        that cannot tell is believed at once.
        """
        call = self.engine.busy()
        if call is None:
            return None
        pause = 0.005
        try:
            async with asyncio.timeout(QUIESCE_CAP) as cap:
                while True:
                    _, body = await self.pool.fetch(call.method, call.path, call.body, timeout=1.0)
                    if self.engine.count_busy(body) <= self.active:
                        return True
                    await asyncio.sleep(pause)
                    pause = min(0.1, pause * 1.5)
        except TimeoutError:
            if not cap.expired():
                raise
        except ValueError:
            return None
        return False

    def close(self) -> None:
        self.pool.close()
