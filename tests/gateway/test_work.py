"""What engines say of their work is shown of each instance and counted by version."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from gateway.live_yard import LiveYard, fake, live_yard
from modelyard.engines.base import Work
from modelyard.engines.fake import FakeEngine
from waiting import until


async def shown(yard: LiveYard, model: str) -> Any:
    await yard.driver.work.look()
    (instance,) = (await yard.http.get("/admin/instances")).json()
    assert instance["model"] == model
    return instance["work"]


async def test_of_an_engine_that_tells() -> None:
    async with live_yard({"m": fake(slots=2)}) as yard:
        instance = await yard.load("m")
        assert await shown(yard, "m") == {"batch": 0, "kv_use": None, "accepted": None}
        async with yard.open_stream("m", "hello", tokens=5000) as (stream, read_on):
            while not stream.text:
                await anext(read_on)
            assert (await shown(yard, "m"))["batch"] == 1
            page = (await yard.http.get("/metrics")).text
        version = instance.version.key
        assert f'modelyard_engine_batch_size{{model="m",version="{version}"}} 1.0' in page
        assert "modelyard_engine_kv_use_ratio{" not in page


async def test_of_one_that_is_gone_nothing_is_left() -> None:
    async with live_yard({"m": fake()}, recheck="20ms") as yard:
        await yard.load("m")
        await until(lambda: bool(yard.driver.work.of))
        await yard.unload("m")
        await until(lambda: not yard.driver.work.of)
        assert "modelyard_engine_batch_size{" not in (await yard.http.get("/metrics")).text


async def test_of_one_that_does_not_answer() -> None:
    async with live_yard({"m": fake()}) as yard:
        await yard.load("m")
        assert await shown(yard, "m") is not None
        os.kill(yard.pids("m")[0], signal.SIGSTOP)
        try:
            assert await shown(yard, "m") is None
        finally:
            os.kill(yard.pids("m")[0], signal.SIGCONT)


async def test_of_one_that_tells_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are heard all the same."""
    read = FakeEngine.read_work
    heard: list[bytes] = []

    def read_work(self: FakeEngine, body: bytes) -> Work:
        heard.append(body)
        if len(heard) == 1:
            raise TypeError("must be real number, not str")
        return read(self, body)

    async with live_yard({"a": fake(), "b": fake()}) as yard:
        for model in ("a", "b"):
            await yard.load(model)
        monkeypatch.setattr(FakeEngine, "read_work", read_work)
        await yard.driver.work.look()
        assert (len(heard), len(yard.driver.work.of)) == (2, 1)
