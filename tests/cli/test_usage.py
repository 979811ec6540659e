"""`modelyard usage` against a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from cli.command_line import run
from gateway.live_yard import ChildYard, child_yard, fake, short_folder
from waiting import until


@pytest.fixture
async def yard() -> AsyncIterator[ChildYard]:
    with short_folder() as folder:
        async with child_yard(folder, {"a": fake(price={"load": 3}), "b": fake()}) as live:
            yield live


async def usage(yard: ChildYard, *words: str, code: int = 0) -> str:
    done = await asyncio.to_thread(run, "usage", *words, "--url", f"unix:{yard.socket}")
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


async def test_what_was_used_is_shown(yard: ChildYard) -> None:
    assert await usage(yard, "--json") == "[]\n"
    for model in ("a", "a", "b"):
        assert (await yard.chat(model, tokens=4)).status == 200

    async def is_kept() -> bool:
        (found,) = (await yard.http.get("/v1/usage")).json()["data"]
        return bool(found["requests"] == 3)

    await until(is_kept)
    rows = json.loads(await usage(yard, "--json"))
    assert [(row["model"], row["requests"], row["cost"]) for row in rows] == [("a", 2, 3), ("b", 1, 0)]
    assert len(json.loads(await usage(yard, "--json", "--by", "model", "--by", "hour", "--model", "b"))) == 1
    head, _, first, second = (line.split() for line in (await usage(yard)).strip().splitlines())
    assert head[:2] == ["model", "requests"]
    assert (first[:2], first[-1]) == (["a", "2"], "3.0000")
    assert second[:2] == ["b", "1"]
    assert (await usage(yard, "--by", "key", "--by", "hour")).split()[:2] == ["key", "hour"]


async def test_what_is_asked_wrongly_is_refused(yard: ChildYard) -> None:
    assert "--since" in await usage(yard, "--since", "long", code=2)
    assert "colour" in await usage(yard, "--by", "colour", code=2)
