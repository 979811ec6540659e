"""A task that is followed: what its events are, and when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from modelyard.errors import TooManyConnections
from modelyard.gateway.follow import Followers
from modelyard.gateway.tasks_routes import events
from modelyard.runtime.tasks import Task, Tasks

LIMIT = 10.0


async def for_ever(task: Task) -> Mapping[str, object]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_silent_task_is_told_to_be_there() -> None:
    tasks, followers = Tasks(), Followers()
    stream = events(tasks.start("try", "a", for_ever), followers, heartbeat=0.01)
    async with asyncio.timeout(LIMIT):
        assert (await anext(stream)).startswith(b"event: progress\ndata: {")
        assert await anext(stream) == b": still here\n\n"
        assert followers.count == 1
        await tasks.close()
        assert [piece.partition(b"\n")[0] async for piece in stream if piece[:1] != b":"] == [
            b"event: cancelled"
        ]
    assert followers.count == 0


async def test_other_keys_end_it() -> None:
    keys = ["old"]
    tasks, followers = Tasks(), Followers(lambda: tuple(keys))
    stream = events(tasks.start("try", "a", for_ever), followers, heartbeat=0.01)
    async with asyncio.timeout(LIMIT):
        await anext(stream)
        keys[:] = ["new"]
        assert all([piece[:1] == b":" async for piece in stream])
    await tasks.close()


async def test_only_so_many_follow() -> None:
    tasks, followers = Tasks(), Followers(bound=1)
    stream = events(tasks.start("try", "a", for_ever), followers)
    await anext(stream)
    with pytest.raises(TooManyConnections):
        followers.check()
    await tasks.close()
    async for _ in stream:
        pass
    followers.check()
