"""A server that outlives the engine behind it and says so, as vLLM's does when its engine core ends."""

from __future__ import annotations

import asyncio

import pytest

from gateway.live_yard import LiveYard, fake, live_yard, right_text
from gateway.test_odd_engines import answered_by, answered_with, json_answer, part, sse_answer
from modelyard.engines.vllm import VllmEngine
from modelyard.servers.fake_script import DEAD
from waiting import until
from wire.raw_engines import OK, Peer

# As vLLM 0.32 answered when its engine core was killed, of whole answers and of streams.
WHOLE = (
    b'{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.",'
    b'"type":"InternalServerError","param":null,"code":500}}'
)
EVENTS = (
    b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root '
    b'cause.", "type": "InternalServerError", "param": null, "code": 500}}\n\ndata: [DONE]\n\n'
)


def dying() -> dict[str, object]:
    """Its warm-up and one request are answered."""
    return fake(parameters={"dead_on_request": 3})


async def ask(yard: LiveYard, stream: bool) -> str:
    """The instance that answered, rightly."""
    if stream:
        streamed = await yard.stream("a")
        assert (streamed.code, streamed.text, streamed.done) == ("", right_text("a", "hi", 4), True)
        return streamed.headers["x-modelyard-instance"]
    answer = await yard.chat("a")
    assert (answer.status, answer.text) == (200, right_text("a", "hi", 4)), answer.body
    return answer.headers["x-modelyard-instance"]


@pytest.mark.parametrize("stream", [False, True])
async def test_before_the_first_byte_it_is_retried_on_a_new_instance(stream: bool) -> None:
    async with live_yard({"a": dying()}) as yard:
        assert [await ask(yard, stream) for _ in range(3)] == ["a-1", "a-2", "a-3"]
        (told, _) = yard.notes("failed")
        assert told.startswith("crashed: ")
        assert DEAD in told, "its log says why"


async def test_a_stream_that_has_begun_ends_in_the_error_that_names_it() -> None:
    begun = asyncio.Event()
    said = EVENTS.replace(b"EngineCore encountered an issue", DEAD.encode())

    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            if head.startswith(b"POST"):
                whole = sse_answer(part(None) + said)
                await peer.send(whole.removesuffix(said))
                await begun.wait()
                await peer.send(said)
            else:
                await peer.send(OK)

    async with answered_by(answering) as yard, yard.open_stream("a") as (stream, more):
        async for _ in more:
            begun.set()
        assert stream.text
        assert (stream.code, stream.done) == ("engine_died", False)
        await until(lambda: bool(yard.notes("failed")))
        (told,) = yard.notes("failed")
        assert "its server says that its engine has ended" in told


@pytest.mark.parametrize("answer", [json_answer(DEAD.encode()), sse_answer(part(None) + part(DEAD))])
async def test_a_text_that_says_so_is_a_text(answer: bytes) -> None:
    async with answered_with(answer) as yard:
        answered = await yard.http.post("/v1/completions", json={"model": "a", "prompt": "hi"})
        assert answered.status_code == 200
        assert DEAD in answered.text
        assert not yard.notes("failed")


def test_vllm_says_so_in_these_words() -> None:
    assert VllmEngine.dead in WHOLE
    assert VllmEngine.dead in EVENTS
