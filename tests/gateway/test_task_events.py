"""A task that is followed: what its events are, and when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from modelyard.config import Key, Scope
from modelyard.core.types import Priority
from modelyard.errors import TooManyConnections
from modelyard.gateway.exchange import ANYBODY, Caller
from modelyard.gateway.follow import Followers
from modelyard.gateway.tasks_routes import events
from modelyard.runtime.tasks import Task, Tasks

LIMIT = 10.0


async def for_ever(task: Task) -> Mapping[str, object]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_silent_task_is_told_to_be_there() -> None:
    tasks, followers = Tasks(), Followers()
    stream = events(tasks.start("try", "a", for_ever), followers.place(ANYBODY), heartbeat=0.01)
    async with asyncio.timeout(LIMIT):
        assert (await anext(stream)).startswith(b"event: progress\ndata: {")
        assert await anext(stream) == b": still here\n\n"
        assert followers.count == 1
        await tasks.close()
        assert [piece.partition(b"\n")[0] async for piece in stream if piece[:1] != b":"] == [
            b"event: cancelled"
        ]
    assert followers.count == 0


def key(name: str, digest: str, *scopes: Scope) -> Key:
    return Key(name, digest, frozenset(scopes), Priority.NORMAL)


OWN = key("own", "1", Scope.ADMIN)


@pytest.mark.parametrize(
    ("caller", "before", "after"),
    [
        ("", [], [key("first", "2", Scope.ADMIN)]),
        ("1", [OWN], []),
        ("1", [OWN], [key("own", "2", Scope.ADMIN)]),
        ("1", [OWN], [key("own", "1", Scope.INFERENCE)]),
    ],
    ids=["the first one", "none any more", "another secret", "other scopes"],
)
async def test_other_keys_end_it(caller: str, before: list[Key], after: list[Key]) -> None:
    keys = [*before]
    tasks, followers = Tasks(), Followers(lambda: keys)
    place = followers.place(Caller("own", frozenset(Scope), Priority.NORMAL, caller))
    stream = events(tasks.start("try", "a", for_ever), place, heartbeat=0.01)
    async with asyncio.timeout(LIMIT):
        await anext(stream)
        assert await anext(stream) == b": still here\n\n"
        if caller:
            keys.append(key("other", "3", Scope.ADMIN))
            for _ in range(3):
                assert await anext(stream) == b": still here\n\n"
        keys[:] = after
        assert all([piece[:1] == b":" async for piece in stream])
    await tasks.close()


async def test_only_so_many_follow() -> None:
    tasks, followers = Tasks(), Followers(bound=1)
    stream = events(tasks.start("try", "a", for_ever), followers.place(ANYBODY))
    await anext(stream)
    with pytest.raises(TooManyConnections):
        followers.place(ANYBODY)
    await tasks.close()
    async for _ in stream:
        pass
    followers.place(ANYBODY)
