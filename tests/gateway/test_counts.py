"""What the metrics page says of requests that ended badly, and of starts that failed."""

from __future__ import annotations

import asyncio

import pytest

from gateway.live_yard import fake, live_yard
from gateway.test_inference import metrics_of
from modelyard.gateway import serve
from waiting import until


async def test_a_bug_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(serve._Serving, "_answer", answer)
    async with live_yard({"a": fake()}) as yard:
        assert (await yard.chat("a")).status == 500
        found = await metrics_of(yard)
        assert found["modelyard_requests_total", ("a", "internal_error", "chat")] == 1
        assert ("modelyard_requests_total", ("a", "cancelled", "chat")) not in found


async def test_what_was_passed_on_before_a_client_left_counts() -> None:
    async with live_yard({"a": fake()}) as yard:
        await yard.load("a")
        async with yard.open_stream("a", tokens=10_000, fake={"tokens_per_second": 20}) as (_, more):
            await anext(more)
        await until(lambda: yard.leases() == 0)
        found = await metrics_of(yard)
        assert found["modelyard_requests_total", ("a", "cancelled", "chat")] == 1
        assert found["modelyard_stream_chunks_total", ("a",)] >= 1
        assert found["modelyard_stream_bytes_total", ("a",)] > 0
        assert found["modelyard_first_token_seconds_count", ("a",)] == 1


async def test_a_client_that_leaves_while_it_waits_is_cancelled() -> None:
    async with live_yard({"a": fake(parameters={"load_time": 0.3})}) as yard:
        request = asyncio.create_task(yard.chat("a"))
        await until(lambda: yard.waiting() == 1)
        request.cancel()
        await until(lambda: yard.waiting() == 0)
        found = await metrics_of(yard)
        assert found["modelyard_requests_total", ("a", "cancelled", "chat")] == 1
        await until(lambda: yard.ready("a") is not None or not yard.state.instances)


async def test_failed_starts_show_how_long_they_took() -> None:
    model = fake(parameters={"load_time": 0.2, "exit_code": 3, "exit_log": "error: the moon is full"})
    async with live_yard({"a": model}) as yard:
        assert (await yard.chat("a")).code == "load_failed"
        found = await metrics_of(yard)
        assert found["modelyard_load_seconds_count", ("a", "failed")] == 2, "it is tried twice"
        assert found["modelyard_load_seconds_sum", ("a", "failed")] >= 2 * 0.2
        assert ("modelyard_load_seconds_count", ("a", "ready")) not in found
