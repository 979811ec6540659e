"""Waiting for something to happen, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

DEADLINE = 30.0  # seconds


async def until(condition: Callable[[], object | Awaitable[object]], deadline: float = DEADLINE) -> None:
    """Wait for a condition (a function, or a coroutine function) to hold; fails at the deadline."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert loop.time() < end, f"not within {deadline:g} s: {condition}"
        await asyncio.sleep(0.005)
