"""Events and logs as streams: what comes first, what comes later, and how they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.live_yard import DEADLINE, LiveYard, fake, live_yard
from gateway.test_admin import error
from modelyard.gateway import follow
from modelyard.gateway.exchange import ANYBODY
from modelyard.gateway.follow import Followers
from modelyard.gateway.snapshot import Snapshot
from waiting import until

MODELS = {"small": fake(parameters={"flood_output": 0}), "other": fake()}


@pytest.fixture
async def yard() -> AsyncIterator[LiveYard]:
    async with live_yard(MODELS) as live:
        yield live


async def read_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def subscribers(yard: LiveYard) -> int:
    return len(yard.driver.notes.followers)


async def test_events_that_were_and_events_that_come(yard: LiveYard) -> None:
    await yard.load("small")
    async with asyncio.timeout(DEADLINE), yard.http.stream("GET", "/admin/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        events = read_events(response)
        first = [await anext(events), await anext(events)]
        assert [event["kind"] for event in first] == ["start", "ready"]
        await yard.load("other")
        later = [await anext(events), await anext(events)]
        assert [(event["kind"], event["fields"]["model"]) for event in later] == [
            ("start", "other"),
            ("ready", "other"),
        ]
        assert later[0]["at"] >= first[1]["at"]
    await until(lambda: subscribers(yard) == 0)


async def test_only_the_last_events(yard: LiveYard) -> None:
    await yard.load("small")
    async with asyncio.timeout(DEADLINE), yard.http.stream("GET", "/admin/events?last=1") as response:
        assert (await anext(read_events(response)))["kind"] == "ready"


async def test_a_client_that_leaves_is_forgotten(yard: LiveYard) -> None:
    async with yard.http.stream("GET", "/admin/events?last=0"):
        await until(lambda: subscribers(yard) == 1)
    await until(lambda: subscribers(yard) == 0)


async def test_events_end_with_the_server() -> None:
    async with live_yard(MODELS) as yard:
        await yard.load("small")
        async with asyncio.timeout(DEADLINE), yard.http.stream("GET", "/admin/events") as response:
            events = read_events(response)
            await anext(events)
            stop = asyncio.create_task(yard.yard.stop(10.0))
            kinds = [event["kind"] async for event in events]
            await stop
        assert kinds[-2:] == ["leave", "gone"]


async def test_a_heartbeat_when_nothing_happens(yard: LiveYard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK", 0.01)
    stream = follow.events(
        yard.driver,
        Snapshot(yard.driver, yard.yard.names, yard.yard.live, yard.yard.catalog),
        Followers().place(ANYBODY),
        0,
        heartbeat=0.02,
    )
    async with asyncio.timeout(DEADLINE):
        assert await anext(stream) == b": events\n\n"
        assert await anext(stream) == b": still here\n\n"
    await stream.aclose()  # type: ignore[attr-defined]
    assert subscribers(yard) == 0


async def test_one_follower_too_many() -> None:
    async with live_yard({"small": fake()}) as second:
        streams = [second.http.stream("GET", "/admin/events") for _ in range(follow.FOLLOWERS)]
        for stream in streams:
            await stream.__aenter__()
        await until(lambda: subscribers(second) == follow.FOLLOWERS)
        found = await error(second, "GET", "/admin/events", 503)
        assert found["code"] == "too_many_connections"
        for stream in streams:
            await stream.__aexit__(None, None, None)
        await until(lambda: subscribers(second) == 0)
        async with second.http.stream("GET", "/admin/events") as response:
            assert response.status_code == 200


async def test_logs_are_the_last_lines(yard: LiveYard) -> None:
    instance = await yard.load("small")
    whole = yard.driver.launcher.tail(instance.id, 1000)
    assert whole
    response = await yard.http.get(f"/admin/instances/{instance.id}/logs")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == whole + "\n"
    last = await yard.http.get(f"/admin/instances/{instance.id}/logs?lines=1")
    assert last.text == whole.splitlines()[-1] + "\n"


async def test_logs_stay_after_the_end(yard: LiveYard) -> None:
    instance = await yard.load("small")
    await yard.unload("small")
    response = await yard.http.get(f"/admin/instances/{instance.id}/logs")
    assert response.status_code == 200
    assert response.text


@pytest.mark.parametrize("lines", ["0", "-1", "10001", "x", ""])
async def test_a_wrong_number_of_lines(yard: LiveYard, lines: str) -> None:
    instance = await yard.load("small")
    found = await error(yard, "GET", f"/admin/instances/{instance.id}/logs?lines={lines}", 400)
    assert found["param"] == "query.lines"


async def test_following_a_log_to_its_end(yard: LiveYard) -> None:
    instance = await yard.load("small")
    path = yard.driver.launcher.log(instance.id)
    assert path is not None
    url = f"/admin/instances/{instance.id}/logs?follow=true&lines=1"
    async with asyncio.timeout(DEADLINE), yard.http.stream("GET", url) as response:
        pieces = response.aiter_text()
        assert (await anext(pieces)).strip()
        with path.open("ab") as file:
            file.write(b"a line that came later\n")
        assert await anext(pieces) == "a line that came later\n"
        unload = asyncio.create_task(yard.unload("small"))
        async for _ in pieces:
            pass
        await unload


async def test_following_a_log_that_is_shortened(yard: LiveYard) -> None:
    instance = await yard.load("small")
    path = yard.driver.launcher.log(instance.id)
    assert path is not None
    url = f"/admin/instances/{instance.id}/logs?follow=true&lines=1"
    async with asyncio.timeout(DEADLINE), yard.http.stream("GET", url) as response:
        pieces = response.aiter_text()
        await anext(pieces)
        fresh = path.with_suffix(".fresh")
        fresh.write_bytes(b"the head\n[...]\nthe tail\n")
        fresh.replace(path)
        assert "was shortened" in await anext(pieces)
        with path.open("ab") as file:
            file.write(b"after that\n")
        assert await anext(pieces) == "after that\n"


async def test_following_a_log_loses_nothing_that_is_written_meanwhile(
    yard: LiveYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await yard.load("small")
    launcher = yard.driver.launcher
    path = launcher.log(instance.id)
    assert path is not None
    tail = launcher.tail

    def tail_then_a_line(name: str, lines: int) -> str:
        found = tail(name, lines)
        with path.open("ab") as file:
            file.write(b"a line that was written meanwhile\n")
        return found

    monkeypatch.setattr(launcher, "tail", tail_then_a_line)
    stream = follow.output(yard.driver, Followers().place(ANYBODY), instance.id, path, 1)
    async with asyncio.timeout(DEADLINE):
        await anext(stream)
        assert await anext(stream) == b"a line that was written meanwhile\n"
    await stream.aclose()  # type: ignore[attr-defined]
