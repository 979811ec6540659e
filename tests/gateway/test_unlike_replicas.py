"""Two replicas of which one is slower than the other, each for as long as the test says."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.live_yard import SHARE, LiveYard, fake, live_yard
from waiting import until

# The fake engine, whose every sleep takes as many times longer as a file says that is named after its device.
SLOWED = """#!{python}
import asyncio, pathlib, re, runpy, sys

device = next(found[0] for found in map(re.compile("gpu[0-9]").match, sys.argv) if found)
factor, sleep = pathlib.Path({folder!r}, device), asyncio.sleep
asyncio.sleep = lambda seconds: sleep(seconds * float(factor.read_text()))
del sys.argv[1]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def times(folder: Path, factors: Mapping[str, float]) -> None:
    for device, factor in factors.items():
        written = folder / f"{device}.new"
        written.write_text(str(factor))
        written.rename(folder / device)


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[LiveYard]:
    """Two replicas of `m`, the one on gpu1 three times as fast as the one on gpu0: 40 ms for a request."""
    program = folder / "slowed"
    program.write_text(SLOWED.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    times(folder, {"gpu0": 6.0, "gpu1": 2.0})
    devices = {f"gpu{n}": {"kind": "declared", "memory": SHARE, "reserve": 0} for n in (0, 1)}
    model = fake(engine="slowed", slots=4, replicas=2, parameters={"first_token_time": 0.02})
    engines = {"slowed": {"type": "fake", "program": str(program)}}
    async with live_yard({"m": model}, devices=devices, engines=engines) as yard:
        await until(lambda: sum(one.state.value == "ready" for one in yard.instances("m")) == 2)
        yield yard


async def ask(yard: LiveYard, count: int) -> Counter[str]:
    """So many requests, one at a time; how many each device answered."""
    devices = {one.id: one.placement[0].device for one in yard.instances("m")}
    shares = Counter[str]()
    for _ in range(count):
        answer = await yard.chat("m")
        assert answer.status == 200, answer.body
        shares[devices[answer.headers["x-modelyard-instance"]]] += 1
    return shares


@pytest.mark.timeout(120)
async def test_at_low_load_the_faster_replica_gets_most_until_it_becomes_the_slower_one(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as yard:
        await ask(yard, 30)
        first = await ask(yard, 40)
        assert first["gpu1"] >= 36, first
        times(tmp_path, {"gpu1": 30.0})
        await ask(yard, 16)
        second = await ask(yard, 40)
        assert second["gpu0"] >= 36, second


@pytest.mark.timeout(120)
async def test_of_some_requests_at_a_time_shares_follow_speed(tmp_path: Path) -> None:
    async with two(tmp_path) as yard:
        await ask(yard, 30)
        shares = sum(await asyncio.gather(*(ask(yard, 30) for _ in range(3))), Counter[str]())
        assert 0.7 <= shares["gpu1"] / shares.total() <= 0.98, shares
