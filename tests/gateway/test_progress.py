"""What a client that asks for progress is told while it waits, and where it cannot have any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from gateway.answers import Stream
from gateway.live_yard import SHARE, LiveYard, fake, live_yard, right_text
from gateway.test_anthropic import events_of
from gateway.test_clients import hold
from modelyard.gateway import progress as progress_module
from modelyard.runtime.entries import Progress
from modelyard.runtime.files import StoreFiles
from waiting import until

ASKED = {"x-progress": "sse"}
ONE = SHARE + SHARE // 2  # a device with room for one model
SLOW = fake(parameters={"load_time": 0.4, "first_token_time": 0.2})


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "EVERY", 0.02)


async def told(yard: LiveYard, model: str, prompt: str = "hi") -> Stream:
    """A stream that was asked for with its progress, read to its end."""
    async with yard.open_stream(model, prompt, headers=ASKED) as (stream, more):
        async for _ in more:
            pass
    return stream


@asynccontextmanager
async def waiting(yard: LiveYard, model: str) -> AsyncIterator[tuple[Stream, AsyncIterator[None]]]:
    """The same, while it waits: its first event has arrived."""
    async with yard.open_stream(model, headers=ASKED) as (stream, more):
        await anext(more)
        assert stream.progress
        yield stream, more


def states(stream: Stream) -> list[str]:
    """The states in their order, a run of the same once."""
    found: list[str] = []
    for event in stream.progress:
        if not found or found[-1] != event["state"]:
            found.append(event["state"])
    return found


class TestStates:
    async def test_of_a_cold_load(self) -> None:
        async with live_yard({"a": SLOW}) as yard:
            stream = await told(yard, "a")
            assert states(stream) == ["loading", "warming", "serving"]
            first, last = stream.progress[0], stream.progress[-1]
            assert first["type"] == "progress"
            assert (first["model"], first["position"], first["eta"]) == ("a", 1, None)
            assert first["request"] == stream.headers["x-modelyard-request"]
            assert last["waited"] >= 0.6
            assert stream.headers["content-type"] == "text/event-stream"
            assert stream.text == right_text("a", "hi", 4)
            assert stream.done

    async def test_of_a_swap_name_its_victim(self) -> None:
        async with live_yard({"a": SLOW, "b": fake()}, memory=ONE) as yard:
            await yard.load("b")
            free = await hold(yard, "b")
            async with waiting(yard, "a") as (stream, more):
                while not (victims := stream.progress[-1]["victims"]):
                    await anext(more)
                assert [(one["model"], one["state"], one["running"]) for one in victims] == [
                    ("b", "draining", 1)
                ]
                assert stream.progress[-1]["line"] == 1
                free()
                async for _ in more:
                    pass
            assert [state for state in states(stream) if state != "queued"] == [
                "swapping",
                "loading",
                "warming",
                "serving",
            ]
            assert stream.text == right_text("a", "hi", 4)

    async def test_of_a_fetch_count_its_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arrived: asyncio.Queue[int] = asyncio.Queue()

        async def nothing(self: StoreFiles, entry: Any) -> None:
            return None

        async def fetch(self: StoreFiles, entry: Any, tell: Any) -> dict[str, Any]:
            while (done := await arrived.get()) <= 100:
                tell(Progress(entry.spec.version, done, 100))
            return {}

        for name, instead in (("cached", nothing), ("lying", nothing), ("fetch", fetch)):
            monkeypatch.setattr(StoreFiles, name, instead)
        async with live_yard({"a": fake()}) as yard, waiting(yard, "a") as (stream, more):
            assert stream.progress[0]["state"] == "fetching"
            for done in (10, 60):
                arrived.put_nowait(done)
                while stream.progress[-1]["bytes"] != done:
                    await anext(more)
            assert stream.progress[-1]["total"] == 100
            assert 0 < stream.progress[-1]["eta"] < 10
            arrived.put_nowait(101)
            async for _ in more:
                pass
            assert states(stream)[0 :: len(states(stream)) - 1] == ["fetching", "serving"]
            assert stream.done


class TestTimes:
    async def test_are_told_once_a_load_was_seen(self) -> None:
        async with live_yard({"a": SLOW}) as yard:
            await yard.load("a")
            await yard.unload("a")
            await until(lambda: not yard.instances("a"))
            stream = await told(yard, "a")
            etas = [event["eta"] for event in stream.progress[:-1]]
            assert 0.3 < etas[0] < 1.5
            assert all(later <= earlier for earlier, later in pairwise(etas))

    async def test_are_told_again_when_nothing_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            async with waiting(yard, "a") as (stream, more):
                monkeypatch.setattr(progress_module, "BEAT", 0.05)
                while len(stream.progress) < 3:
                    await anext(more)
                first, second, third = stream.progress[:3]
                assert first["waited"] < second["waited"] < third["waited"]
                assert (first["state"], first["waiting_for"]) == ("queued", "a slot")
                free()
                async for _ in more:
                    pass
            assert stream.done

    async def test_are_not_repeated_before(self) -> None:
        async with live_yard({"a": SLOW}) as yard:
            stream = await told(yard, "a")
            assert len(stream.progress) == len(states(stream))


class TestPlaces:
    async def test_fall_as_others_go(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            first = asyncio.create_task(told(yard, "a"))
            await until(lambda: yard.waiting() == 1)
            async with waiting(yard, "a") as (stream, more):
                assert stream.progress[0]["position"] == 2
                first.cancel()
                while stream.progress[-1]["position"] != 1:
                    await anext(more)
                free()
                async for _ in more:
                    pass
            assert stream.done

    async def test_are_given_up_when_the_client_leaves(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            free = await hold(yard)
            async with waiting(yard, "a"):
                assert yard.waiting() == 1
            await until(lambda: yard.waiting() == 0)
            free()


class TestFailures:
    async def test_end_the_stream_as_the_apis_error(self) -> None:
        broken = {"load_time": 0.2, "exit_code": 1, "exit_log": "error: failed to load model: torn"}
        async with live_yard({"a": fake(parameters=broken)}) as yard:
            stream = await told(yard, "a")
            assert (stream.status, stream.code) == (200, "cannot_load")
            assert "serving" not in states(stream)
            assert not stream.done
            again = await told(yard, "a")
            assert (again.status, again.refusal.code) == (503, "cannot_load"), "refused at once: no stream"

    async def test_of_an_attempt_are_told_as_another_wait(self) -> None:
        async with live_yard({"a": fake(parameters={"crash_after_tokens": 0, "load_time": 0.2})}) as yard:
            async with yard.open_stream("a", headers=ASKED, fake={"crash": True}) as (stream, more):
                async for _ in more:
                    pass
            assert states(stream).count("serving") > 1
            assert stream.code in ("engine_died", "engine_unreachable")


class TestOtherApis:
    async def test_anthropics_has_events_of_its_shape(self) -> None:
        async with live_yard({"a": SLOW}) as yard:
            body = {
                "model": "a",
                "max_tokens": 4,
                "stream": True,
                "messages": [{"role": "user", "content": "hi"}],
            }
            response = await yard.http.post("/v1/messages", json=body, headers=ASKED)
            events = events_of(response.text)
            found = [event.get("state") for event in events if event["type"] == "progress"]
            assert found == ["loading", "warming", "serving"]
            assert [event["type"] for event in events[3:5]] == ["message_start", "ping"]
            assert events[-1]["type"] == "message_stop"

    async def test_generate_has_them_too(self) -> None:
        async with live_yard({"a": SLOW}) as yard:
            body = {"model": "a", "prompt": "hi", "stream": True}
            text = (await yard.http.post("/generate", json=body, headers=ASKED)).text
            assert text.count("event: progress\n") == 3
            assert text.endswith("data: [DONE]\n\n")

    @pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
    async def test_ollamas_has_no_place_for_them(self, path: str) -> None:
        async with live_yard({"a": fake()}) as yard:
            body = {"model": "a", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
            del body["messages" if path.endswith("generate") else "prompt"]
            answer = await yard.post(path, body, **ASKED)
            assert answer.status == 400
            assert "lines of JSON" in answer.body["error"]


class TestRefusals:
    async def test_of_another_value(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            for stream in (True, False):
                answer = await yard.post(
                    "/v1/chat/completions",
                    {"model": "a", "messages": [], "stream": stream},
                    **{"x-progress": "json"},
                )
                assert (answer.status, answer.code) == (400, "invalid_request")
                assert answer.body["error"]["param"] == "X-Progress"

    async def test_without_a_stream(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            answer = await yard.post("/v1/embeddings", {"model": "a", "input": "hi"}, **ASKED)
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert "set `stream` to true" in answer.message


async def test_who_is_served_at_once_is_told_nothing() -> None:
    async with live_yard({"a": fake()}) as yard:
        await yard.load("a")
        stream = await told(yard, "a")
        assert not stream.progress
        assert int(stream.headers["x-modelyard-queue-ms"]) == 0


async def test_chunks_that_clients_of_openai_can_read() -> None:
    """They take every event for a chunk; those without choices they know from the counts at the end."""
    async with live_yard({"a": SLOW}) as yard:
        stream = await told(yard, "a")
        for event in stream.progress:
            assert (event["object"], event["choices"]) == ("modelyard.progress", [])
            assert json.dumps(event)
