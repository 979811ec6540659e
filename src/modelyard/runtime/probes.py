"""Probes: ask an engine whether it serves, how fast it can be asked without being a burden.

Called by the driver's commands. A probe reports; it never kills.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from math import inf

from modelyard.engines.base import Call
from modelyard.wire.errors import Broken, ConnectFailed, WireError
from modelyard.wire.pool import Pool

PAUSES = ((3.0, 0.005), (20.0, 0.1), (inf, 1.0))  # until so many seconds have passed: the pause between two
ANSWERS = (200, 401, 403, 404)
PROBE_TIMEOUT = 1.0
PROBE_TRIES = 3


class WarmUpFailed(Exception):
    """The engine answers its health check and refuses to generate; the message is its answer. `configured`:
    what it refused stands in the model's `warm_up`."""

    def __init__(self, message: str, status: int, *, configured: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.configured = configured


async def wait_healthy(pool: Pool, path: str) -> None:
    """Poll until the health check answers 200. No connection, and 503 while it loads, are progress. One that
    wants a key, or has no such path, never will: its first generation tells more.

    The caller bounds the time and races it with the exit of the process.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        with suppress(WireError, TimeoutError):
            status, _ = await pool.fetch("GET", path, timeout=PROBE_TIMEOUT)
            if status in ANSWERS:
                return
        passed = loop.time() - started
        await asyncio.sleep(next(pause for until, pause in PAUSES if passed < until))


async def warm_up(pool: Pool, calls: Sequence[Call], deadline: float) -> None:
    """Have it generate. As `ask`; but one that says 429 serves, though others have all of it at the moment:
    requests are told when to try again."""
    try:
        await ask(pool, calls, "its first generation", deadline)
    except WarmUpFailed as refused:
        if refused.status != 429:
            raise


async def ask(pool: Pool, calls: Sequence[Call], usual: str, deadline: float) -> None:
    """Make all these calls, one after the other, until the loop's time is `deadline`; one that begins later
    has a second. Raises WarmUpFailed, WireError or TimeoutError, which names the call: `usual` where it has
    no name."""
    loop = asyncio.get_running_loop()
    for call in calls:
        what = call.name or usual
        try:
            left = max(1.0, deadline - loop.time())
            is_look = call.method == "GET"  # its status is what matters: a list of models may be long
            status, body = await pool.fetch(call.method, call.path, call.body, timeout=left, cut=is_look)
        except TimeoutError:
            raise TimeoutError(f"{what} took too long") from None
        if not 200 <= status < 300:
            message = f"{what} was answered with {status}: {_said(body)}"
            raise WarmUpFailed(message, status, configured=bool(call.name))


def _said(body: bytes) -> str:
    """The message of an error's body, as OpenAI's and LibreTranslate's API have it; else how it begins."""
    try:
        error = json.loads(body)["error"]
        said = error if isinstance(error, str) else str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = body.decode(errors="replace")
    return said[:300]


class Health(Enum):
    """What a few tries of the health check found."""

    ANSWERS = "answers"
    SILENT = "silent"
    UNREACHABLE = "unreachable"  # the last try was refused, or its connection was closed


async def look(pool: Pool, path: str) -> Health:
    """Whether the health check answers at all; at most PROBE_TRIES times PROBE_TIMEOUT later."""
    found = Health.SILENT
    for _ in range(PROBE_TRIES):
        try:
            await pool.fetch("GET", path, timeout=PROBE_TIMEOUT, cut=True)
        except (ConnectFailed, Broken):
            found = Health.UNREACHABLE
        except (WireError, TimeoutError):
            found = Health.SILENT
        else:
            return Health.ANSWERS
    return found
