"""What a request is tried again for, how long it may queue for that, and what ends it at once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from gateway.answers import Answer
from gateway.live_yard import LiveYard, fake, live_yard, right_text
from gateway.test_clients import hold
from gateway.test_inference import metrics_of
from modelyard.core.events import ShutdownAsked
from modelyard.core.state import Waiting
from modelyard.errors import CutAtDrain
from modelyard.runtime import endpoint, probes
from waiting import until

SLOW = {"delay": 30.0}  # of a request that is ended by its test


async def pass_time(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    await until(lambda: loop.time() >= end)


async def running(yard: LiveYard) -> str:
    """Wait until one request holds a slot; the name of its instance."""
    await until(lambda: yard.leases() == 1)
    (lease,) = yard.state.leases.values()
    return lease.instance.id


async def queued(yard: LiveYard) -> Waiting:
    await until(lambda: yard.waiting() == 1)
    (waiting,) = yard.state.waiting.values()
    return waiting


def kill(yard: LiveYard, instance: str) -> None:
    os.kill(yard.driver.launcher.pids(instance)[0], signal.SIGKILL)


async def not_counted_as_refused(yard: LiveYard, outcome: str) -> None:
    """One request ended with this outcome, after a retry that was refused."""
    found = await metrics_of(yard)
    assert found["modelyard_requests_total", ("a", outcome, "chat")] == 1
    assert not [key for key in found if key[0] == "modelyard_rejections_total"]
    assert ("modelyard_broken_promises_total", ("a",)) not in found


class TestBudget:
    async def test_of_a_retry_is_not_spent_by_a_long_attempt(self) -> None:
        model = fake(max_wait="1s", min_replicas=2, max_replicas=2)
        async with live_yard({"a": model}) as yard:
            await until(lambda: len(yard.instances("a")) == 2 and _ready(yard) == 2)
            request = asyncio.create_task(yard.chat("a", fake={"delay": 1.7}))
            first = await running(yard)
            free = await hold(yard)
            await pass_time(1.1)
            kill(yard, first)
            await queued(yard)
            free()
            answer = await request
            assert (answer.status, answer.text) == (200, right_text("a", "hi", 4)), answer.body
            assert int(answer.headers["x-modelyard-queue-ms"]) < 1000, "attempts are not counted"

    async def test_that_runs_out_tells_how_the_attempt_failed(self) -> None:
        model = fake(max_wait="200ms", min_replicas=1, parameters={"load_time": 0.6})
        async with live_yard({"a": model}) as yard:
            await until(lambda: _ready(yard) == 1)
            request = asyncio.create_task(yard.chat("a", fake=SLOW))
            first = await running(yard)
            await until(lambda: yard.busy("a"))
            kill(yard, first)
            answer = await request
            assert answer.status == 502
            assert answer.code in ("engine_died", "engine_unreachable"), answer.code
            assert first in answer.message
            await not_counted_as_refused(yard, answer.code)

    async def test_is_kept_by_all_when_an_engine_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What ran there lasts as long as it takes to find out, which is no wait."""
        monkeypatch.setattr(probes, "PROBE_TIMEOUT", 0.2)
        silence, most = 1.5, 10.0
        model = fake(slots=2, first_byte_timeout=f"{silence}s", max_wait=f"{most}s")
        async with live_yard({"a": model}) as yard:
            first = await yard.load("a")

            async def timed(number: int) -> tuple[Answer, float]:
                began = asyncio.get_running_loop().time()
                answer = await yard.chat("a", str(number), fake={"delay": 0.2})
                return answer, asyncio.get_running_loop().time() - began

            requests = [asyncio.create_task(timed(number)) for number in range(6)]
            await until(lambda: len(first.leases) == 2 and yard.waiting() == 4)
            os.kill(yard.pids("a")[0], signal.SIGSTOP)
            for answer, lasted in await asyncio.gather(*requests):
                assert answer.status == 200, answer.body
                waited = int(answer.headers["x-modelyard-queue-ms"]) / 1000
                assert waited <= most
                found_out = silence + 3 * 0.2
                assert lasted - waited <= found_out + 2.0, "seconds beside: two attempts' own time"

    async def test_is_one_for_all_waits(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            request = asyncio.create_task(yard.chat("a", fake={"delay": 1.0}))
            await queued(yard)
            await pass_time(0.25)
            free()
            await running(yard)
            (lease,) = yard.driver.requests.leases.values()
            assert lease.waited >= 0.25
            taken = asyncio.create_task(yard.chat("a", "another", fake={"delay": 0.3}))
            await queued(yard)
            lease.cut_by(CutAtDrain("on order"))
            await until(lambda: lease.request in yard.state.waiting)
            retry = await queued(yard)  # alone: what waited already went first
            assert retry.deadline - retry.queued_at == pytest.approx(20.0 - lease.waited)
            assert (await taken).text == right_text("a", "another", 4)
            answer = await request
            assert answer.text == right_text("a", "hi", 4)
            assert int(answer.headers["x-modelyard-queue-ms"]) >= 250 + 100


def _ready(yard: LiveYard) -> int:
    return sum(one.state.value == "ready" for one in yard.instances("a"))


async def test_a_retry_that_is_refused_is_no_rejection() -> None:
    async with live_yard({"a": fake()}) as yard:
        await yard.load("a")
        request = asyncio.create_task(yard.chat("a", fake=SLOW))
        await running(yard)
        yard.driver.post(ShutdownAsked(now=True))
        assert (await request).code == "shutting_down"
        await not_counted_as_refused(yard, "shutting_down")


class TestUnloadAtOnce:
    async def test_ends_what_has_not_begun_and_loads_nothing_again(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            request = asyncio.create_task(yard.chat("a", fake=SLOW))
            await running(yard)
            await yard.unload("a", now=True)
            answer = await request
            assert (answer.status, answer.code) == (503, "unloaded")
            assert answer.message == "a-1 had to leave: unload was asked for"
            assert answer.headers["x-should-retry"] == "false"
            assert yard.state.sequence == 1

    async def test_in_the_tick_of_the_grant_ends_the_request(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            instance = await yard.load("a")
            free = await hold(yard)
            request = asyncio.create_task(yard.chat("a", fake=SLOW))
            await queued(yard)
            free()
            yard.driver.unload(instance.version.key, now=True)
            answer = await request
            assert (answer.status, answer.code) == (503, "unloaded")

    async def test_ends_a_stream_with_its_error(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            async with yard.open_stream("a", tokens=10_000, fake={"tokens_per_second": 20}) as (stream, more):
                await anext(more)
                unloading = asyncio.create_task(yard.unload("a", now=True))
                async for _ in more:
                    pass
            assert (stream.code, stream.done, stream.left) == ("unloaded", False, "")
            await unloading
            assert yard.state.sequence == 1


class TestRequestTimeout:
    async def test_after_the_first_byte_is_told_before_the_engine_has_noticed(self) -> None:
        # The engine looks at its client once per token: every 3 s.
        order = {"tokens_per_second": 1 / 3}
        async with live_yard({"a": fake(request_timeout="300ms")}) as yard:
            await yard.load("a")
            stream = await yard.stream("a", fake=order)
            assert (stream.code, stream.done, stream.left) == ("request_deadline", False, "")
            assert yard.leases() == 1, "the slot counts until the engine has noticed"
            assert await yard.busy("a") == 1
            await until(lambda: yard.leases() == 0)
            assert await yard.busy("a") == 0
            found = await metrics_of(yard)
            assert found["modelyard_requests_total", ("a", "request_deadline", "chat")] == 1
            assert found["modelyard_stream_chunks_total", ("a",)] >= 1

    async def test_of_an_answer_that_is_no_stream_leaves_a_slow_engine_alone(self) -> None:
        async with live_yard({"a": fake(request_timeout="300ms")}) as yard:
            first = await yard.load("a")
            answer = await yard.chat("a", fake={"tokens_per_second": 1 / 2})
            assert (answer.status, answer.code) == (504, "request_deadline")
            assert yard.leases() == 1, "the client is told before the engine has noticed"
            await until(lambda: yard.leases() == 0)
            assert (first.strikes, first.suspect) == (0, False)
            again = await yard.chat("a")
            assert (again.status, again.headers["x-modelyard-instance"]) == (200, first.id)

    async def test_holds_for_all_attempts_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint, "QUIESCE_CAP", 0.1)  # the engine does not notice
        model = fake(request_timeout="2s", min_replicas=2, max_replicas=2)
        async with live_yard({"a": model}) as yard:
            await until(lambda: _ready(yard) == 2)
            request = asyncio.create_task(yard.chat("a", fake=SLOW))
            first = await running(yard)
            await pass_time(1.5)
            kill(yard, first)
            killed = asyncio.get_running_loop().time()
            answer = await request
            assert (answer.status, answer.code) == (504, "request_deadline")
            assert first not in answer.message
            assert asyncio.get_running_loop().time() - killed < 1.5
