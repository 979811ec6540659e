"""Engines that answer something else than was asked for: what a client gets, and what is counted.

The engine is a raw one, put behind the endpoint of an instance that is ready.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.answers import Stream
from gateway.live_yard import LiveYard, fake, live_yard
from gateway.test_inference import metrics_of
from modelyard.gateway import relay
from modelyard.wire.pool import Pool
from wire.raw_engines import OK, Answering, Peer, engine

MB = 1 << 20
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
PROMPT = {"model": "a", "prompt": "hi"}


def json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def sse_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"text": text}], "usage": USAGE}).encode()


def part(finish: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": '"error"'}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode()


@asynccontextmanager
async def answered_with(answer: bytes) -> AsyncIterator[LiveYard]:
    """A yard whose model `a` answers every generation with these bytes."""

    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            await peer.send(answer if head.startswith(b"POST") else OK)

    async with answered_by(answering) as yard:
        yield yard


@asynccontextmanager
async def answered_by(answering: Answering) -> AsyncIterator[LiveYard]:
    """A yard whose model `a` is this engine."""
    async with live_yard({"a": fake()}) as yard, engine(answering) as odd:
        instance = await yard.load("a")
        endpoint = yard.driver.commands.residents[instance.id].endpoint
        assert endpoint is not None
        own, endpoint.pool = endpoint.pool, Pool(odd.address)
        try:
            yield yard
        finally:
            endpoint.pool.close()
            endpoint.pool = own


async def generate_stream(yard: LiveYard) -> Stream:
    response = await yard.http.post("/generate", json={**PROMPT, "stream": True})
    stream = Stream(response.status_code, dict(response.headers))
    stream.feed(response.text)
    return stream


class TestGenerate:
    @pytest.mark.parametrize("body", [b"", b"oops", b"[1]", b'{"choices":'])
    async def test_of_what_is_no_object_is_a_protocol_error(self, body: bytes) -> None:
        async with answered_with(json_answer(body)) as yard:
            answer = await yard.post("/generate", PROMPT)
            assert (answer.status, answer.code) == (502, "engine_protocol_error")
            assert answer.message.startswith("a-1 ")
            assert "which is no JSON object" in answer.message

    @pytest.mark.parametrize("body", [b"{}", b'{"choices":[]}', b'{"choices":[7]}', b'{"choices":7}'])
    async def test_of_an_object_without_text_is_empty(self, body: bytes) -> None:
        async with answered_with(json_answer(body)) as yard:
            answer = await yard.post("/generate", PROMPT)
            assert (answer.status, answer.body) == (200, {"text": "", "model": "a"})

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    async def test_of_events_with_any_line_end_reshapes_each(self, end: str) -> None:
        events = [
            ": beat",
            'data: {"choices":[{"text":"one "}]}',
            f'id: 7{end}data: {{"choices":{end}data:[{{"text":"two"}}]}}',
            f'data:{{"choices":[],"usage":{json.dumps(USAGE)}}}',
            "data: [DONE]",
        ]
        body = "".join(event + end + end for event in events).encode()
        async with answered_with(sse_answer(body)) as yard:
            stream = await generate_stream(yard)
            assert stream.status == 200
            assert (stream.done, stream.left, stream.comments) == (True, "", 1)
            assert stream.objects == [
                {"text": "one ", "model": "a"},
                {"text": "two", "model": "a"},
                {"text": "", "model": "a", "usage": USAGE},
            ]

    @pytest.mark.parametrize("event", [b"data: oops\n\n", b"data: [1]\n\n"])
    async def test_of_a_first_event_that_is_no_object_is_a_protocol_error(self, event: bytes) -> None:
        async with answered_with(sse_answer(event)) as yard:
            answer = (await generate_stream(yard)).refusal
            assert (answer.status, answer.code) == (502, "engine_protocol_error")
            assert "which is no JSON object" in answer.message

    async def test_of_a_large_answer_is_reshaped_and_counted(self) -> None:
        async with answered_with(json_answer(completion("x" * 3 * MB))) as yard:
            answer = await yard.post("/generate", PROMPT)
            assert answer.status == 200
            assert answer.body == {"text": "x" * 3 * MB, "model": "a", "usage": USAGE}
            found = await metrics_of(yard)
            assert found["modelyard_tokens_total", ("out", "a")] == 4

    async def test_of_an_answer_over_the_bound_is_a_protocol_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "RESHAPED_MOST", 2 * MB)
        async with answered_with(json_answer(completion("x" * 3 * MB))) as yard:
            answer = await yard.post("/generate", PROMPT)
            assert (answer.status, answer.code) == (502, "engine_protocol_error")
            assert f"its answer is longer than {2 * MB} bytes" in answer.message


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (400, b'{"error":{"code":400,"message":"no","type":"x"}}', "no", "invalid_request"),
        (422, b'{"detail":"odd"}', '{"detail":"odd"}', "invalid_request"),
        (404, b"lost", "lost", "invalid_request"),
        (501, b'{"error":{"code":501,"message":"never"}}', "never", "engine_failed"),
        (500, b'{"error":{"code":500,"message":"no input"}}', "no input", "engine_failed"),
    ],
)
async def test_a_refusal_has_the_apis_shape(status: int, body: bytes, message: str, code: str) -> None:
    head = b"HTTP/1.1 %d X\r\ncontent-type: text/x\r\ncontent-length: %d\r\n\r\n"
    async with answered_with(head % (status, len(body)) + body) as yard:
        answer = await yard.post("/v1/completions", PROMPT)
        assert answer.status == (status if status < 500 else 502)
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.body["error"]) == {"message", "type", "param", "code"}
        assert (answer.message, answer.code) == (message, code)


NO_IMAGES = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        (
            "/v1/chat/completions",
            {},
            {"message": NO_IMAGES, "type": "invalid_request_error", "param": None, "code": "invalid_request"},
        ),
        ("/v1/messages", {"max_tokens": 1}, {"message": NO_IMAGES, "type": "invalid_request_error"}),
        ("/api/chat", {"stream": False}, NO_IMAGES),
    ],
)
async def test_what_no_instance_can_take_is_the_clients_mistake(
    path: str, body: dict[str, object], error: object
) -> None:
    """llama.cpp answers 500 to it."""
    said = json.dumps({"error": {"code": 500, "message": NO_IMAGES, "type": "server_error"}}).encode()
    head = b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with answered_with(head % len(said) + said) as yard:
        messages = [{"role": "user", "content": "What is it?"}]
        answer = await yard.post(path, {"model": "a", "messages": messages, **body})
        assert (answer.status, answer.body["error"]) == (400, error)


@pytest.mark.parametrize(
    ("path", "status", "code"), [("/detokenize", 400, "invalid_request"), ("/tokenize", 502, "engine_failed")]
)
async def test_a_token_that_there_is_not_is_the_clients_mistake(path: str, status: int, code: str) -> None:
    """It is an uncaught exception of llama.cpp's."""
    said = b'{"error":{"code":500,"message":"vector::_M_range_check: __n (which is 9) >= this->size()"}}'
    head = b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with answered_with(head % len(said) + said) as yard:
        answer = await yard.post(path, {"model": "a", "tokens": [9], "content": "x"})
        assert (answer.status, answer.code) == (status, code)
        assert ("`tokens`" in answer.message) is (status == 400)


async def test_a_large_answer_passes_as_it_is_and_its_tokens_count() -> None:
    body = completion("x" * 3 * MB)
    async with answered_with(json_answer(body)) as yard:
        response = await yard.http.post("/v1/completions", json=PROMPT)
        assert response.content == body
        found = await metrics_of(yard)
        assert found["modelyard_tokens_total", ("in", "a")] == 3
        assert found["modelyard_tokens_total", ("out", "a")] == 4


async def test_a_stream_that_ends_before_the_generation_did_ends_in_an_error() -> None:
    """In good order, as by a server behind which the engine itself has died."""
    async with answered_with(sse_answer(part(None) * 2)) as yard:
        stream = await yard.stream("a")
        assert (stream.code, stream.done) == ("engine_died", False)
        assert stream.text


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", part("stop"), b'data: {"error": {"code": "full"}}\n\n'])
async def test_a_stream_that_says_how_it_ended_is_whole(end: bytes) -> None:
    async with answered_with(sse_answer(part(None) + end)) as yard:
        stream = await yard.stream("a")
        assert stream.events[-1].encode() == end.strip().removeprefix(b"data: ")
