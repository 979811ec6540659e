"""Clients that wait, leave, or do not read; and what they are told when they may not wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import httpx
import pytest

from gateway.live_yard import SHARE, LiveYard, body_of, fake, live_yard, right_text
from modelyard.core.events import Arrived
from modelyard.core.types import OutcomeKind
from waiting import until

LONG = {"tokens_per_second": 20}  # of a request that runs until its client leaves


async def hold(yard: LiveYard, model: str = "a") -> Callable[[], None]:
    """Take a free slot of a ready model as the gateway does; returns what gives it back."""
    (version,) = (v for v in yard.state.versions.values() if v.spec.model == model)
    ticket = yard.driver.requests.arrive(Arrived(yard.driver.requests.new(), version.key))
    lease = ticket.lease
    assert lease is not None, f"{model} had no free slot"
    return lambda: lease.release(OutcomeKind.DONE)


class TestDeparture:
    async def test_while_waiting_gives_up_the_place_in_the_queue(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            waiting = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            waiting.cancel()
            await until(lambda: yard.waiting() == 0)
            assert yard.leases() == 1
            free()

    async def test_while_streaming_frees_the_slot_at_the_engine(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            async with yard.open_stream("a", tokens=10_000, fake=LONG) as (_, more):
                await anext(more)
                assert await yard.busy("a") == 1
            await until(lambda: yard.leases() == 0, 5.0)
            assert await yard.busy("a") == 0

    async def test_before_the_first_byte_frees_the_slot_at_the_engine(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            request = asyncio.create_task(yard.chat("a", tokens=10_000, fake=LONG))
            await until(lambda: yard.leases() == 1)
            request.cancel()
            await until(lambda: yard.leases() == 0, 5.0)
            assert await yard.busy("a") == 0

    @pytest.mark.parametrize("leaves_first", [True, False])
    async def test_in_the_tick_of_the_grant_leaks_nothing(self, leaves_first: bool) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            for streaming in (True, False):
                free = await hold(yard)
                request = asyncio.create_task(
                    yard.http.post("/v1/chat/completions", json=body_of("a", "hi", 1, streaming, {}))
                )
                await until(lambda: yard.waiting() == 1)

                def leave() -> None:
                    for connection in list(yard.yard.server._connections):
                        if connection._current is not None:
                            connection.cut()

                for step in (leave, free) if leaves_first else (free, leave):
                    step()
                with pytest.raises(httpx.TransportError):
                    await request
                await until(lambda: yard.leases() == 0 and yard.waiting() == 0, 5.0)
            answer = await yard.chat("a")
            assert answer.status == 200

    async def test_of_whoever_asked_for_a_model_lets_the_load_finish(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 0.3})}) as yard:
            request = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            request.cancel()
            await until(lambda: yard.waiting() == 0)
            await until(lambda: yard.ready("a") is not None or not yard.state.instances)


async def test_a_reader_that_never_reads_is_cut_and_its_slot_freed() -> None:
    limits = {"limits": {"write_timeout": "500ms"}}
    async with live_yard({"a": fake()}, server=limits) as yard:
        await yard.load("a")
        body = json.dumps(body_of("a", "hi", 1_000_000, True, {})).encode()
        reader, writer = await asyncio.open_unix_connection(str(yard.socket))
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        await until(lambda: yard.leases() == 1)
        await until(lambda: yard.leases() == 0)
        assert await yard.busy("a") == 0
        writer.close()


class TestWaiting:
    async def test_longer_than_max_wait_is_a_broken_promise_and_counted(self) -> None:
        async with live_yard({"a": fake(max_wait="1200ms")}) as yard:
            await yard.load("a")
            free = await hold(yard)
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "broken_promise")
            assert "a was not ready within 1.2 s" in answer.message
            assert int(answer.headers["retry-after"]) >= 1
            assert yard.leases() == 1
            free()
            metrics = (await yard.http.get("/metrics")).text
            assert 'modelyard_broken_promises_total{model="a"} 1' in metrics

    async def test_in_a_full_queue_is_refused(self) -> None:
        async with live_yard({"a": fake(queue_bound=1)}) as yard:
            await yard.load("a")
            free = await hold(yard)
            waiting = asyncio.create_task(yard.chat("a"))
            await until(lambda: yard.waiting() == 1)
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (429, "queue_full")
            assert "1 requests wait for a already (its queue_bound is 1)" in answer.message
            assert int(answer.headers["retry-after"]) >= 1
            assert "x-should-retry" not in answer.headers
            free()
            assert (await waiting).status == 200

    async def test_for_too_long_is_refused_at_arrival(self) -> None:
        async with live_yard({"a": fake(max_wait="100ms", parameters={"load_time": 0.5})}) as yard:
            assert (await yard.chat("a")).status == 503, "how long a load takes was not known"
            await until(lambda: yard.ready("a") is not None)
            await yard.unload("a")
            await until(lambda: not yard.state.instances)
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (429, "wait_too_long")
            assert "after the max_wait of 0.1 s" in answer.message
            assert int(answer.headers["retry-after"]) >= 1
            assert yard.state.sequence == 1

    async def test_with_when_full_fail_is_refused_at_once(self) -> None:
        async with live_yard({"a": fake(), "b": fake(when_full="fail")}, memory=SHARE) as yard:
            await yard.load("a")
            answer = await yard.chat("b")
            assert (answer.status, answer.code) == (503, "no_memory")
            assert "b has when_full: fail" in answer.message
            assert yard.ready("a") is not None

    async def test_with_when_full_wait_waits_until_someone_leaves(self) -> None:
        async with live_yard({"a": fake(), "b": fake(when_full="wait")}, memory=SHARE) as yard:
            await yard.load("a")
            request = asyncio.create_task(yard.chat("b"))
            await until(lambda: yard.waiting() == 1)
            await yard.chat("a")
            assert not request.done()
            await yard.unload("a")
            assert (await request).status == 200

    async def test_is_refused_to_whoever_does_not_want_a_load(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            order = {"model": "a", "prompt": "hi", "max_tokens": 4, "load": False}
            answer = await yard.post("/generate", order)
            assert (answer.status, answer.code) == (409, "model_not_running")
            assert answer.message == "a is not running, and load is false"
            assert answer.headers["x-should-retry"] == "false"
            assert yard.state.sequence == 0
            await yard.load("a")
            assert (await yard.post("/generate", order)).status == 200


class TestHeartbeats:
    async def test_keep_a_stream_alive_while_its_model_loads(self) -> None:
        model = fake(parameters={"load_time": 0.5})
        async with live_yard({"a": model}, server={"heartbeat_after": "50ms"}) as yard:
            async with yard.open_stream("a") as (stream, more):
                assert stream.status == 200
                await anext(more)
                assert stream.comments == 1
                assert yard.ready("a") is None
                async for _ in more:
                    pass
            assert stream.headers["content-type"] == "text/event-stream"
            assert stream.text == right_text("a", "hi", 4)
            assert stream.done

    async def test_end_with_an_error_event_when_the_load_fails(self) -> None:
        model = fake(
            parameters={"load_time": 0.4, "exit_code": 1, "exit_log": "error: failed to load model: torn"}
        )
        async with live_yard({"a": model}, server={"heartbeat_after": "50ms"}) as yard:
            stream = await yard.stream("a")
            assert (stream.status, stream.code) == (200, "cannot_load")
            assert stream.comments == 1
            assert "error: failed to load model: torn" in stream.errors[0]["message"]
            assert not stream.done

    async def test_are_not_sent_to_whoever_does_not_stream(self) -> None:
        model = fake(parameters={"load_time": 0.3, "exit_code": 1})
        async with live_yard({"a": model}, server={"heartbeat_after": "50ms"}) as yard:
            answer = await yard.chat("a")
            assert (answer.status, answer.code) == (503, "cannot_load")


async def test_sixteen_clients_share_memory_for_two_of_three_models() -> None:
    async with live_yard({name: fake(slots=4) for name in "abc"}) as yard:

        async def client(number: int) -> None:
            for turn in range(4):
                model = "abc"[(number + turn) % 3]
                prompt = f"client {number}, turn {turn}"
                if number % 2:
                    stream = await yard.stream(model, prompt)
                    assert (stream.status, stream.code, stream.done) == (200, "", True), stream
                    assert stream.text == right_text(model, prompt, 4)
                else:
                    answer = await yard.chat(model, prompt)
                    assert (answer.status, answer.code) == (200, ""), answer.body
                    assert answer.text == right_text(model, prompt, 4)

        await asyncio.gather(*(client(number) for number in range(16)))
