"""What every engine has to do in a yard, as the real thing; `stand` says how one is added.

The tests of an engine share one yard, in the order in which they stand here; each begins with a request that
starts an instance where there is none. A table of all engines is printed at the end (`conftest`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from e2e.engines.stand import CHAT, VECTORS, Stand, stands
from gateway.answers import Answer, Stream
from gateway.live_yard import LiveYard, child_yard, left_behind, live_yard, short_folder
from modelyard.core.state import Instance
from modelyard.launchers.processes import Process
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

PROMPT = "Say yes."
WITHIN = 0.15
QUIET = 0.25  # of one core
SHARED = Path("/dev/shm")

Record = Callable[[str, object], None]


@dataclass
class Bench:
    """An engine's yard, and what its first answer was."""

    stand: Stand
    yard: LiveYard
    models: frozenset[str]

    async def ask(self, *, tokens: int = 8) -> Answer:
        answer = await self.yard.chat(CHAT, PROMPT, tokens=tokens, temperature=0)
        assert answer.status == 200, answer.body
        return answer

    def long(self) -> AbstractAsyncContextManager[tuple[Stream, AsyncIterator[None]]]:
        """A stream that takes 10 s and more."""
        return self.yard.open_stream(CHAT, "Count to a thousand.", tokens=1500, **self.stand.long)

    async def resident(self) -> Instance:
        return self.yard.ready(CHAT) or await self.yard.load(CHAT)

    def tree(self) -> list[Process]:
        """The processes of the instance of `chat`, the engine's first."""
        return [one for pid in self.yard.pids(CHAT) if (one := Process.find(pid))]

    async def at_work(self) -> int | None:
        """How many requests the engine says that it processes; None when it cannot tell."""
        instance = await self.resident()
        entry = self.yard.driver.entries[instance.version.key]
        endpoint = self.yard.driver.commands.residents[instance.id].endpoint
        call = entry.engine.busy()
        if call is None or endpoint is None:
            return None
        _, body = await endpoint.pool.fetch(call.method, call.path, timeout=5.0)
        return entry.engine.count_busy(body)

    async def idle(self) -> bool:
        """Whether the engine has stopped working: by what it says, else by its processes' time."""
        at_work = await self.at_work()
        if at_work is not None or not self.stand.local:
            return not at_work
        before, began = _cpu_seconds(self.tree()), time.monotonic()
        await asyncio.sleep(0.5)
        return _cpu_seconds(self.tree()) - before < QUIET * (time.monotonic() - began)

    def held(self) -> tuple[int, int]:
        """What the ledger says of the instance of `chat`: its own bytes, reserved and measured."""
        instance = self.yard.ready(CHAT)
        assert instance is not None
        accounts = self.yard.state.ledger.devices.values()
        reserved, observed = zip(*(account.holds(instance.id) for account in accounts), strict=True)
        return sum(reserved), sum(observed)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=stands(), ids=lambda stand: stand.name)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    stand: Stand = request.param
    if reason := stand.absent():
        pytest.skip(reason)
    async with AsyncExitStack() as stack:
        sections = stack.enter_context(stand.sections(stack.enter_context(short_folder())))
        models = sections.pop("models")
        patient = {"max_wait": "10m", "load_cap": stand.start, "keep_alive": "1h"}
        yard = await stack.enter_async_context(live_yard(models, **sections, defaults=patient))
        yard.http.timeout = httpx.Timeout(300)  # a long prompt on a busy machine
        yield Bench(stand, yard, frozenset(models))


def ours_alone(bench: Bench) -> None:
    if not bench.stand.local:
        pytest.skip("its processes are not ours")


async def test_load_and_ready(bench: Bench, record_property: Record) -> None:
    began = time.monotonic()
    instance = await bench.yard.load(CHAT)
    record_property("starts in", f"{time.monotonic() - began:.1f} s")
    assert instance.version.spec.model == CHAT
    if bench.stand.local:
        assert bench.tree()
    listed = (await bench.yard.http.get(f"/v1/models/{CHAT}")).json()
    assert "chat" in listed["modelyard"]["capabilities"]


async def test_chat(bench: Bench) -> None:
    answer = await bench.ask()
    assert answer.text
    assert answer.body["model"] == CHAT
    usage = answer.body["usage"]
    assert 0 < usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert (await bench.ask()).text == answer.text, "greedy text is the same again"


async def test_stream(bench: Bench) -> None:
    more = {"temperature": 0, "stream_options": {"include_usage": True}}
    stream = await bench.yard.stream(CHAT, PROMPT, tokens=8, **more)
    assert (stream.status, stream.code, stream.done) == (200, "", True)
    whole = await bench.ask()
    assert stream.text == whole.text
    assert len({part["id"] for part in stream.objects}) == 1
    assert stream.objects[-1]["usage"]["completion_tokens"] == whole.body["usage"]["completion_tokens"]


async def test_embeddings(bench: Bench) -> None:
    if VECTORS not in bench.models:
        pytest.skip("has no model that embeds")
    texts = ["the sea", "the sea", "a tax form"]
    answer = await bench.yard.post("/v1/embeddings", {"model": VECTORS, "input": texts})
    assert answer.status == 200, answer.body
    assert [item["index"] for item in answer.body["data"]] == [0, 1, 2]
    same, again, other = (item["embedding"] for item in answer.body["data"])
    assert same == pytest.approx(again, abs=1e-3)
    assert same != pytest.approx(other, abs=1e-3)
    await bench.yard.unload(VECTORS)


async def test_cancel_frees_the_slot(bench: Bench) -> None:
    await bench.ask()
    async with AsyncExitStack() as opened:
        streams = [await opened.enter_async_context(bench.long()) for _ in range(bench.stand.slots)]
        for stream, read_on in streams:
            while not stream.text:
                await anext(read_on)
        assert bench.yard.leases() == bench.stand.slots
        assert await bench.at_work() in (None, bench.stand.slots)
    began = time.monotonic()
    await until(bench.idle, 5)  # the whole would take 10 s and more
    await until(lambda: not bench.yard.leases(), 5)
    await bench.ask()
    assert time.monotonic() - began < 10


async def test_overload(bench: Bench) -> None:
    await bench.ask()
    most = 0
    asked = [asyncio.create_task(bench.ask(tokens=24)) for _ in range(4 * bench.stand.slots)]
    while not all(one.done() for one in asked):
        most = max(most, bench.yard.leases())
        await asyncio.wait(asked, timeout=0.005, return_when=asyncio.FIRST_COMPLETED)
    texts = {(await one).text for one in asked}
    assert most == bench.stand.slots
    assert all(texts)


async def test_crash(bench: Bench) -> None:
    ours_alone(bench)
    first, text = await bench.resident(), (await bench.ask()).text
    tree = bench.tree()
    async with bench.long() as (stream, read_on):
        while not stream.text:
            await anext(read_on)
        tree[0].kill()
        async for _ in read_on:
            pass
    assert stream.code, "it ends with an error that is named"
    assert (await bench.ask()).text == text
    assert (await bench.resident()).id != first.id
    await until(lambda: not _living(tree))


async def test_memory_is_as_planned(bench: Bench, record_property: Record) -> None:
    """From the second start on."""
    ours_alone(bench)
    entry = bench.yard.driver.entries[(await bench.resident()).version.key]
    assert entry.files is not None
    estimate = sum(share.bytes for share in entry.engine.need(entry.spec, entry.files).shares)
    await _fill(bench)
    await bench.yard.unload(CHAT)
    await until(lambda: not bench.yard.instances(CHAT))
    await bench.yard.load(CHAT)
    await _fill(bench)
    planned, measured = bench.held()
    figures = f"{measured / 1e6:.0f} MB; estimated {estimate / measured - 1:+.0%}, planned then"
    record_property("takes", f"{figures} {planned / measured - 1:+.0%}")
    assert planned == pytest.approx(measured, rel=WITHIN)


async def test_stop(bench: Bench) -> None:
    await bench.ask()
    tree = bench.tree() if bench.stand.local else []
    await bench.yard.unload(CHAT)
    await until(lambda: not bench.yard.instances(CHAT))
    await until(lambda: not _living(tree))


async def test_memory_returned(bench: Bench) -> None:
    ours_alone(bench)
    await bench.ask()
    await bench.yard.driver.observer.look()
    shared = set(SHARED.iterdir())
    _, measured = bench.held()
    assert measured
    bench.tree()[0].kill()  # the one end that lets it put nothing in order
    await bench.ask()
    await bench.yard.unload(CHAT)
    await until(lambda: not bench.yard.instances(CHAT))
    assert bench.yard.reserved() == 0
    assert sum(account.observed for account in bench.yard.state.ledger.devices.values()) == 0
    assert _size(_left(set(SHARED.iterdir()) - shared)) < WITHIN * measured


async def test_no_orphan(bench: Bench) -> None:
    """Whatever becomes of the server."""
    ours_alone(bench)
    with short_folder() as folder, bench.stand.sections(folder) as sections:
        models = sections.pop("models")
        patient = {"max_wait": "10m", "load_cap": bench.stand.start}
        async with child_yard(folder, models, **sections, defaults=patient) as yard:
            yard.http.timeout = httpx.Timeout(bench.stand.start)
            assert (await yard.post(f"/admin/models/{CHAT}/load")).status == 200
            owner = yard.owner()
            assert yard.processes(owner)
            yard.signal(signal.SIGKILL)
            await yard.exited()
            await until(lambda: not left_behind(folder, owner))


async def _fill(bench: Bench) -> None:
    """Have every slot answer something longer, and look."""
    long = "Tell me of the sea and its ships. " * 20
    asked = (bench.yard.chat(CHAT, long, tokens=16) for _ in range(bench.stand.slots))
    assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    await bench.yard.driver.observer.look()


def _living(tree: list[Process]) -> list[Process]:
    return [one for one in tree if Process.find(one.pid) == one]


def _cpu_seconds(tree: list[Process]) -> float:
    ticks = 0
    for process in tree:
        with suppress(OSError):
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _left(files: set[Path]) -> set[Path]:
    """Those of these files that no process has in its memory."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            mapped = (folder / "maps").read_text() if folder.name.isdigit() else ""
            files = {file for file in files if str(file) not in mapped}
    return files


def _size(files: set[Path]) -> int:
    size = 0
    for file in files:
        with suppress(OSError):
            size += file.stat().st_size
    return size
