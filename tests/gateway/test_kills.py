"""A yard as a child process, as a user runs it: killed, killed with one of its shims, stopped by Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.live_yard import MB, ChildYard, child_yard, fake, right_text, short_folder
from launchers.process_table import alive
from waiting import until

WITHIN = 10.0  # seconds until nothing may be left
FORKING = fake(parameters={"fork_grandchild": True})
IN_RAM = {"engine": "fake", "devices": ["ram"], "parameters": {"memory": {"ram": 30 * MB}}}


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def shim_of(engine: int) -> int:
    """The parent of an engine."""
    return int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])


class TestKill:
    @pytest.mark.parametrize("model", [fake(), FORKING, IN_RAM], ids=["plain", "forking", "ram"])
    async def test_of_the_yard_leaves_no_process_and_no_memory(
        self, folder: Path, model: dict[str, object]
    ) -> None:
        async with child_yard(folder, {"a": model}) as yard:
            assert (await yard.chat("a")).status == 200
            owner = yard.owner()
            assert len(yard.processes(owner)) >= 2
            yard.signal(signal.SIGKILL)
            assert await yard.exited() == -signal.SIGKILL
            await until(lambda: yard.processes(owner) == [], WITHIN)

    async def test_in_the_middle_of_a_stream_leaves_no_process(self, folder: Path) -> None:
        async with child_yard(folder, {"a": fake()}) as yard:
            order = {"tokens_per_second": 20}
            running = asyncio.create_task(yard.stream("a", tokens=10_000, fake=order))
            await until(lambda: records(yard))
            owner = yard.owner()
            yard.signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                await running
            await until(lambda: yard.processes(owner) == [], WITHIN)

    async def test_of_yard_and_shim_together_is_cleaned_up_by_the_next_start(self, folder: Path) -> None:
        async with child_yard(folder, {"a": FORKING}) as yard:
            assert (await yard.chat("a")).status == 200
            owner, engine = yard.owner(), yard.engine()
            shim = shim_of(engine)
            (grandchild,) = set(yard.processes(owner)) - {engine, shim}
            # Stopped first, so that it does not see the shim's end.
            yard.signal(signal.SIGSTOP)
            os.kill(shim, signal.SIGKILL)
            yard.signal(signal.SIGKILL)
            await yard.exited()
            await until(lambda: not alive(engine), WITHIN)
            assert alive(grandchild), "nobody was left to end it"
        async with child_yard(folder, {"a": FORKING}) as yard:
            assert not alive(grandchild)
            assert (await yard.chat("a")).status == 200
            yard.signal(signal.SIGINT)
            assert await yard.exited() == 0
            assert yard.processes(owner) == []


class TestCtrlC:
    async def test_once_lets_a_stream_finish_and_exits_with_0(self, folder: Path) -> None:
        async with child_yard(folder, {"a": fake(slots=2)}) as yard:
            order = {"tokens_per_second": 20}
            async with yard.open_stream("a", tokens=30, fake=order) as (stream, more):
                await anext(more)
                owner = yard.owner()
                yard.signal(signal.SIGINT)
                await until(lambda: refused(yard))
                async for _ in more:
                    pass
            assert stream.done
            assert stream.text == right_text("a", "hi", 30)
            assert await yard.exited() == 0
            assert yard.processes(owner) == []

    async def test_once_cuts_a_stream_at_the_end_of_the_grace(self, folder: Path) -> None:
        async with child_yard(folder, {"a": fake()}, server={"drain_grace": "500ms"}) as yard:
            order = {"tokens_per_second": 20}
            async with yard.open_stream("a", tokens=10_000, fake=order) as (stream, more):
                await anext(more)
                owner = yard.owner()
                yard.signal(signal.SIGINT)
                async for _ in more:
                    pass
            assert stream.code == "shutting_down"
            assert stream.left == ""
            assert not stream.done
            assert await yard.exited() == 0
            assert yard.processes(owner) == []

    async def test_twice_stops_at_once_and_tells_whoever_is_cut_off(self, folder: Path) -> None:
        async with child_yard(folder, {"a": fake(slots=2)}, server={"drain_grace": "60s"}) as yard:
            order = {"tokens_per_second": 20}
            plain = asyncio.create_task(yard.chat("a", tokens=10_000, fake=order))
            async with yard.open_stream("a", tokens=10_000, fake=order) as (stream, more):
                await anext(more)
                owner = yard.owner()
                yard.signal(signal.SIGINT)
                await until(lambda: refused(yard))
                assert "waiting up to 60 s for 2 running requests; Ctrl-C again stops now" in yard.output
                yard.signal(signal.SIGINT)
                async for _ in more:
                    pass
            assert (stream.code, stream.left, stream.done) == ("shutting_down", "", False)
            answer = await plain
            assert (answer.status, answer.code) == (503, "shutting_down")
            assert await yard.exited(WITHIN) == 0
            assert yard.processes(owner) == []

    async def test_while_a_model_loads_stops_it(self, folder: Path) -> None:
        async with child_yard(folder, {"a": fake(parameters={"load_time": 60.0})}) as yard:
            waiting = asyncio.create_task(yard.chat("a"))
            await until(lambda: records(yard))
            owner = yard.owner()
            yard.signal(signal.SIGTERM)
            answer = await waiting
            assert (answer.status, answer.code) == (503, "shutting_down")
            assert await yard.exited() == 0
            assert yard.processes(owner) == []


async def refused(yard: ChildYard) -> bool:
    """Whether the yard takes no more connections."""
    try:
        _, writer = await asyncio.open_unix_connection(str(yard.socket))
    except OSError:
        return True
    writer.close()
    return False


def records(yard: ChildYard) -> bool:
    """Whether an engine runs."""
    try:
        return bool(yard.records())
    except FileNotFoundError:
        return False
