"""Memory that somebody else takes: loads wait for it, or put others out, and go on when it is given back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.live_yard import DEADLINE, MB, SHARE, TWO, LiveYard, fake, live_yard
from modelyard.core.types import Charge
from modelyard.runtime.devices.declared import POOLS
from waiting import until

RECHECK = 0.5
OFTEN = f"{RECHECK:g}s"
# Takes memory as any process on the device may, and keeps it until its standard input ends.
TAKE = """
import sys
from pathlib import Path
from modelyard.servers.fake_memory import Held
held = Held()
held.pool(Path(sys.argv[1]), int(sys.argv[2]))
print("taken", flush=True)
sys.stdin.read()
held.drop()
"""


class Foreigner:
    """A process that is not ours, with memory on the declared device."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def give_back(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await asyncio.wait_for(self._process.wait(), DEADLINE) == 0

    async def die(self) -> None:
        self._process.kill()
        await asyncio.wait_for(self._process.wait(), DEADLINE)


@asynccontextmanager
async def foreigner(yard: LiveYard, size: int) -> AsyncIterator[Foreigner]:
    """One that holds `size` bytes of the device."""
    pools = yard.driver.devices.environment((Charge("gpu0", size),))[POOLS]
    pool = Path(pools) / "gpu0"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TAKE, str(pool), str(size), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), DEADLINE) == b"taken\n"
        yield Foreigner(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def foreign(yard: LiveYard) -> int:
    return yard.state.ledger.devices["gpu0"].foreign


async def seen(yard: LiveYard, size: int) -> None:
    """Wait until the ledger says so, at most one re-check later."""
    await until(lambda: foreign(yard) == size, RECHECK + 2.0)


async def test_a_load_that_waits_starts_when_the_memory_comes_back() -> None:
    async with live_yard({"a": fake(when_full="wait")}, memory=TWO, recheck=OFTEN) as yard:
        async with foreigner(yard, TWO - SHARE + MB) as other:
            await seen(yard, TWO - SHARE + MB)
            request = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            await seen(yard, TWO - SHARE + MB)
            assert yard.state.sequence == 0, "nothing was started into memory that is not there"
            await other.give_back()
            await until(lambda: yard.state.sequence == 1, RECHECK + 2.0)
            answer = await request
        assert answer.status == 200
        assert int(answer.headers["x-modelyard-queue-ms"]) > 0


async def test_a_foreign_process_that_is_killed_gives_its_memory_back() -> None:
    async with (
        live_yard({"a": fake(when_full="wait")}, memory=SHARE, recheck=OFTEN) as yard,
        foreigner(yard, MB) as other,
    ):
        await seen(yard, MB)
        request = asyncio.create_task(yard.chat("a"))
        await until(lambda: yard.waiting() == 1)
        await other.die()
        await until(lambda: yard.state.sequence == 1, RECHECK + 2.0)
        assert (await request).status == 200


async def test_a_load_under_evict_starts_at_once_when_somebody_can_leave() -> None:
    """Foreign memory that stays: what is ours makes the room."""
    async with live_yard({"a": fake(), "b": fake()}, memory=TWO) as yard:
        await yard.load("a")
        async with foreigner(yard, SHARE):
            await yard.driver.observer.look()
            assert foreign(yard) == SHARE
            answer = await yard.chat("b")
            assert answer.status == 200
            assert yard.ready("a") is None
            assert foreign(yard) == SHARE


async def test_a_load_under_evict_waits_when_nobody_can_leave() -> None:
    async with live_yard({"a": fake()}, memory=SHARE, recheck=OFTEN) as yard, foreigner(yard, MB) as other:
        await seen(yard, MB)
        request = asyncio.create_task(yard.chat("a"))
        await until(lambda: yard.waiting() == 1)
        assert yard.state.sequence == 0
        await other.give_back()
        assert (await asyncio.wait_for(request, RECHECK + 5.0)).status == 200


async def test_a_release_looks_at_the_devices_again() -> None:
    """Long before the next re-check."""
    async with live_yard({"a": fake()}, memory=TWO, recheck="1h") as yard:
        await yard.load("a")
        async with foreigner(yard, MB):
            assert foreign(yard) == 0, "nobody looked"
            await yard.unload("a")
            await until(lambda: foreign(yard) == MB)


async def test_a_load_that_may_not_wait_is_told_who_holds_the_memory() -> None:
    async with live_yard({"a": fake(when_full="fail")}, memory=SHARE) as yard, foreigner(yard, MB):
        await yard.driver.observer.look()
        answer = await yard.chat("a")
        assert (answer.status, answer.code) == (503, "no_memory")
        assert yard.state.sequence == 0


async def test_what_runs_stays_when_somebody_takes_more_than_there_is_left() -> None:
    async with live_yard({"a": fake()}, memory=TWO) as yard:
        await yard.load("a")
        async with foreigner(yard, TWO - SHARE):
            await yard.driver.observer.look()
            assert (await yard.chat("a")).status == 200
            devices = (await yard.http.get("/admin/devices")).json()
            (gpu,) = (device for device in devices if device["id"] == "gpu0")
            assert (gpu["foreign"], gpu["reserved"], gpu["free"]) == (TWO - SHARE, SHARE, 0)


async def test_a_load_into_memory_that_was_taken_since_the_last_look_waits_for_it() -> None:
    """It dies of that, which says nothing of what it needs."""
    async with live_yard({"a": fake(when_full="wait")}, memory=TWO, recheck="1h") as yard:
        async with foreigner(yard, TWO - SHARE + MB) as other:
            assert foreign(yard) == 0, "nobody looked"
            request = asyncio.create_task(yard.chat("a"))
            await until(lambda: foreign(yard) == TWO - SHARE + MB)
            await until(lambda: not yard.state.instances)
            assert yard.state.sequence == 1
            (version,) = yard.state.versions.values()
            assert version.need is not None
            assert version.need.bytes == SHARE
            await other.give_back()
            await yard.driver.observer.look()
            answer = await asyncio.wait_for(request, DEADLINE)
        assert answer.status == 200
        assert yard.state.sequence == 2
