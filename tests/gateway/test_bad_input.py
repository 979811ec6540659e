"""Requests that no model is to see: each is refused with its status, its code and a sentence that helps, and
leaves no lease, no queue place and no engine behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import pytest

from engines.gguf_file import gguf
from gateway.answers import Answer
from gateway.http.raw_client import RawClient
from gateway.live_yard import LiveYard, body_of, fake, live_yard, right_text, short_folder
from modelyard.core.types import Address
from waiting import until

CHAT = "/v1/chat/completions"
KIB = 1024


async def send(
    yard: LiveYard, content: bytes | str, path: str = CHAT, headers: Mapping[str, str] | None = None
) -> Answer:
    """A body as it is, right or wrong."""
    response = await yard.http.post(path, content=content, headers=dict(headers or {}))
    return Answer(response.status_code, dict(response.headers), response.json())


@asynccontextmanager
async def raw(yard: LiveYard) -> AsyncIterator[RawClient]:
    async with RawClient(Address(path=str(yard.socket))) as client:
        yield client


def untouched(yard: LiveYard) -> bool:
    """No instance was ever started, and nobody waits."""
    return yard.state.sequence == 0 and not yard.leases() and not yard.waiting()


def request_bytes(body: Mapping[str, Any], *lines: bytes, path: str = CHAT) -> bytes:
    """A whole POST with a counted body."""
    content = json.dumps(body).encode()
    head = [b"POST %b HTTP/1.1" % path.encode(), b"Host: localhost", b"Content-Length: %d" % len(content)]
    return b"\r\n".join((*head, *lines, b"", content))


WRONG_BODIES: list[tuple[bytes | str, str]] = [
    ('{"model": "a",\n "messages": [}', "not valid JSON at line 2, column 15"),
    ('{"model": "a"', "not valid JSON at line 1, column"),
    ("model=a", "not valid JSON at line 1, column 1"),
    (b'{"model": "\xff"}', "The body is not UTF-8: byte 12 is wrong"),
    ("", "The body is empty; send a JSON object."),
    (" \n", "The body is empty; send a JSON object."),
    ("[]", "The body is a JSON array; send an object."),
    ('"a"', "The body is a JSON string; send an object."),
    ('{"model": 7}', "`model` is a JSON number; send a string."),
    ('{"model": ["a"]}', "`model` is a JSON array; send a string."),
    ('{"model": "a", "stream": "yes"}', "`stream` is a JSON string; send true or false."),
    ("[" * 5000, "not valid JSON"),
]


class TestNames:
    async def test_an_unknown_model_is_answered_with_near_names(self) -> None:
        async with live_yard({"qwen-3": fake(), "smol": fake(aliases=["smollm"])}) as yard:
            for path in (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/generate", "/tokenize"):
                answer = await yard.post(path, {"model": "qwen3", "prompt": "hi"})
                assert (answer.status, answer.code) == (404, "model_not_found"), path
                assert answer.message == "There is no model 'qwen3'. Did you mean 'qwen-3'?"
                assert answer.body["error"]["param"] == "model"
                assert answer.body["error"]["type"] == "invalid_request_error"
            assert "'smollm' or 'smol'" in (await yard.chat("smolm")).message
            assert "There are qwen-3, smol, smollm." in (await yard.chat("!")).message
            assert untouched(yard)

    async def test_a_missing_model_is_asked_for_when_there_are_several(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            bodies: list[dict[str, Any]] = [{"messages": []}, {"model": None, "messages": []}]
            for body in bodies:
                answer = await yard.post(CHAT, body)
                assert (answer.status, answer.code) == (400, "invalid_request")
                assert answer.message == "Say which model: `model` is missing."
                assert answer.body["error"]["param"] == "model"
            assert untouched(yard)

    async def test_a_missing_model_is_the_only_one_there_is(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            answer = await yard.post(CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
            assert answer.text == right_text("a", "hi", 3)

    async def test_what_only_looks_like_a_name_is_none(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for name in ("a@12345", "a@000000000000", "b@", "@", "a@", " a", "A", "a\0", ""):
                answer = await yard.chat(name)
                assert (answer.status, answer.code) == (404, "model_not_found"), name
            assert untouched(yard)

    async def test_a_name_of_megabytes_is_neither_compared_nor_repeated(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            answer = await yard.chat("a" * 10_000_000)
            assert (answer.status, answer.code) == (404, "model_not_found")
            assert len(answer.message) < 500
            assert "aaa…'" in answer.message
            assert untouched(yard)


class TestBodies:
    async def test_that_are_wrong_are_refused_with_the_place(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for body, said in WRONG_BODIES:
                for path in (CHAT, "/generate"):
                    answer = await send(yard, body, path)
                    assert (answer.status, answer.code) == (400, "invalid_request"), body
                    assert said in answer.message
            assert untouched(yard)

    async def test_over_the_limit_are_refused(self) -> None:
        async with live_yard({"a": fake()}, server={"limits": {"body": "64KiB"}}) as yard:
            large = json.dumps(body_of("a", "x" * 64 * KIB, 1, False, {}))
            answer = await send(yard, large)
            assert (answer.status, answer.code) == (413, "body_too_large")
            assert "65,536" in answer.message

            async def pieces() -> AsyncIterator[bytes]:
                for start in range(0, len(large), 8 * KIB):
                    yield large[start : start + 8 * KIB].encode()

            response = await yard.http.post(CHAT, content=pieces())
            assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
            assert untouched(yard)
            fits = await send(yard, json.dumps(body_of("a", "x" * 32 * KIB, 1, False, {})))
            assert fits.status == 200

    async def test_the_engine_refuses_are_its_own_answer(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            answer = await yard.post(CHAT, {"model": "a", "messages": "hi"})
            assert answer.status == 400
            assert '"messages" must be a non-empty array' in answer.message
            answer = await yard.post("/v1/embeddings", {"model": "a"})
            assert answer.status == 400
            assert '"input" must be a string' in answer.message

    async def test_longer_than_the_context_are_refused_in_openais_words(self) -> None:
        async with live_yard({"a": fake(parameters={"context": 8})}) as yard:
            long = "one two three four five six seven eight nine ten"
            answer = await yard.chat("a", long)
            stream = await yard.stream("a", long)
            for refusal in (answer, stream.refusal):
                assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
                assert "exceeds the available context size (8 tokens)" in refusal.message
                assert refusal.body["error"]["type"] == "invalid_request_error"
                assert refusal.body["error"]["param"] == "messages"
            assert "x-should-retry" not in answer.headers
            assert (await yard.chat("a", "hi", tokens=1)).status == 200

    async def test_longer_than_the_context_end_a_stream_that_waited(self) -> None:
        model = fake(parameters={"context": 8, "load_time": 0.3})
        async with live_yard({"a": model}, server={"heartbeat_after": "20ms"}) as yard:
            stream = await yard.stream("a", "one two three four five six seven eight nine ten")
            assert (stream.status, stream.code) == (200, "context_length_exceeded")
            assert stream.comments >= 1
            assert not stream.done

    async def test_are_named_by_the_field_of_their_api(self) -> None:
        long = "one two three four five six seven eight nine ten"
        async with live_yard({"a": fake(parameters={"context": 8})}) as yard:
            for path in ("/v1/completions", "/generate"):
                answer = await yard.post(path, {"model": "a", "prompt": long})
                assert (answer.status, answer.code) == (400, "context_length_exceeded"), answer.body
                assert answer.body["error"]["param"] == "prompt"

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [(422, "invalid_request", "invalid_request_error"), (500, "engine_failed", "server_error")],
    )
    async def test_that_the_engine_refuses_end_a_stream_that_waited(
        self, status: int, code: str, kind: str
    ) -> None:
        model = fake(parameters={"load_time": 0.3})
        async with live_yard({"a": model}, server={"heartbeat_after": "20ms"}) as yard:
            stream = await yard.stream("a", fake={"status": status})
            assert (stream.status, stream.code) == (200, code)
            assert stream.errors[0]["type"] == kind
            assert stream.errors[0]["message"] == f"the engine answered with {status}: failure on order"
            assert not stream.done


class TestWaitingForContinue:
    async def test_is_answered_at_once_when_the_body_is_too_large(self) -> None:
        async with live_yard({"a": fake()}, server={"limits": {"body": "1KiB"}}) as yard, raw(yard) as client:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            client.send(head + b"Content-Length: 2000\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 413
            assert json.loads(answer.body)["error"]["code"] == "body_too_large"

    async def test_is_answered_at_once_without_a_key(self) -> None:
        keys = [{"name": "me", "key": "secret", "scopes": "inference"}]
        async with live_yard({"a": fake()}, keys=keys) as yard, raw(yard) as client:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            client.send(head + b"Content-Length: 20\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 401
            assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
            # The yard's own end needs a key that this one has not.
            assert untouched(yard)

    async def test_is_answered_at_once_where_nothing_is(self) -> None:
        async with live_yard({"a": fake()}) as yard, raw(yard) as client:
            client.send(b"POST /v1/chats HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n")
            client.send(b"Content-Length: 20\r\n\r\n")
            answer = await client.answer()
            assert answer.status == 404
            assert json.loads(answer.body)["error"]["code"] == "not_found"

    async def test_is_told_to_go_on_when_all_is_well(self) -> None:
        async with live_yard({"a": fake()}) as yard, raw(yard) as client:
            whole = request_bytes(body_of("a", "hi", 2, False, {}), b"Expect: 100-continue")
            head, _, content = whole.partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            assert (await client.head()).status == 100
            client.send(content)
            assert (await client.answer()).status == 200


class TestPaths:
    async def test_an_endpoint_that_the_engine_has_not(self) -> None:
        async with live_yard({"a": fake(parameters={"apis": ["chat"]})}) as yard:
            for path in ("/v1/embeddings", "/v1/rerank", "/v1/completions", "/tokenize", "/v1/responses"):
                answer = await yard.post(path, {"model": "a", "input": "hi"})
                assert (answer.status, answer.code) == (501, "not_supported")
                want = f"a (engine fake) does not serve {path}; it serves /v1/chat/completions."
                assert answer.message == want
                assert answer.headers["x-should-retry"] == "false"
            generate = await yard.post("/generate", {"model": "a", "prompt": "hi"})
            assert (generate.status, generate.code) == (501, "not_supported")
            assert untouched(yard)

    async def test_a_wrong_method(self) -> None:
        paths = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/generate")
        async with live_yard({"a": fake()}) as yard:
            for path, method in product(paths, ("GET", "PUT", "DELETE", "PATCH")):
                response = await yard.http.request(method, path)
                assert response.status_code == 405
                assert response.json()["error"]["code"] == "method_not_allowed"
                assert response.json()["error"]["message"] == f"{path} takes POST, not {method}."
                assert response.headers["allow"] == "POST"
            response = await yard.http.delete("/v1/models")
            assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")

    async def test_an_order_that_is_no_json_is_told_where_it_breaks(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for content, said in (
                (b'{"now":\n }', "The body is not valid JSON at line 2, column 2: "),
                (b'{"now": "\xff"}', "The body is not UTF-8: byte 10 is wrong"),
            ):
                answer = await yard.http.post(
                    "/admin/models/a/unload", content=content, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 400
                assert answer.json()["error"]["message"].startswith(said)

    async def test_health_is_answered_to_head_as_well(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for path in ("/health", "/ready"):
                whole, head = await yard.http.get(path), await yard.http.head(path)
                assert (head.status_code, head.content) == (whole.status_code, b"")
                assert head.headers["content-length"] == whole.headers["content-length"]

    async def test_a_path_that_there_is_not(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for path in ("/v1/chat", "/v1/chat/completions/", "/v2/models", "/chat/completions"):
                answer = await yard.post(path, body_of("a", "hi", 1, False, {}))
                assert (answer.status, answer.code) == (404, "not_found")
                assert answer.message == f"There is no POST {path}; /docs lists what there is."
            assert untouched(yard)


async def test_a_model_that_can_never_fit_says_what_it_needs() -> None:
    """Its file was replaced after the start; a request finds out, and a client is told not to retry."""
    small, large = (
        gguf(
            {"general.architecture": "llama", "llama.context_length": context, "llama.embedding_length": 64,
             "llama.block_count": 2, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 4,
             "llama.feed_forward_length": 64},
            [("token_embd.weight", (64, 100_000 if context == 4096 else 10), 0)],
        )
        for context in (8, 4096)
    )  # fmt: skip
    with short_folder() as folder:
        (folder / "large.gguf").write_bytes(small)
        model = {"engine": "llamacpp", "source": str(folder / "large.gguf"), "devices": ["ram"]}
        devices = {"ram": {"memory": "30MB", "reserve": 0}}
        async with live_yard({"large": model}, devices=devices) as yard:
            (folder / "large.gguf").write_bytes(large)
            for _ in range(2):
                answer = await yard.chat("large")
                assert (answer.status, answer.code) == (503, "never_fits")
                assert "large" in answer.message
                assert "30000000 bytes (30.0 MB)" in answer.message
                (version,) = yard.state.versions.values()
                assert version.never is not None
                assert str(version.never.need) in answer.message
                assert answer.headers["x-should-retry"] == "false"
                assert "retry-after" not in answer.headers
            assert untouched(yard)


class TestConnections:
    async def test_two_lengths_reach_no_engine(self) -> None:
        """A request that a proxy in front would end elsewhere than we do is none at all."""
        async with live_yard({"a": fake()}) as yard:
            await yard.load("a")
            hidden = request_bytes(body_of("a", "hidden", 1, False, {}))
            for lines in (
                (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
                (b"Transfer-Encoding: chunked", b"Content-Length: 4"),
                (b"Content-Length: 0", b"Content-Length: %d" % len(hidden)),
                (b"Transfer-Encoding: xchunked",),
                (b"Transfer-Encoding : chunked",),
            ):
                async with raw(yard) as client:
                    head = (b"POST /v1/chat/completions HTTP/1.1", b"Host: localhost", *lines)
                    client.send(b"\r\n".join((*head, b"", b"0\r\n\r\n" + hidden)))
                    answer = await client.answer()
                    assert answer.status == 400, lines
                    assert await client.rest() == b"", "nothing is answered behind a refusal"
            assert yard.yard.metrics.traffic("a").ended == {}

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        async with live_yard({"a": fake(slots=4), "b": fake(slots=4)}) as yard, raw(yard) as client:
            await yard.load("b")
            slow: Mapping[str, Any] = {"fake": {"delay": 0.2}}
            asked = [("a", "one", slow), ("b", "two", {}), ("a", "three", {}), ("b", "four", {})]
            client.send(b"".join(request_bytes(body_of(m, text, 3, False, more)) for m, text, more in asked))
            for model, text, _ in asked:
                answer = await client.answer()
                assert answer.status == 200
                content = json.loads(answer.body)["choices"][0]["message"]["content"]
                assert content == right_text(model, text, 3)

    async def test_a_head_that_trickles_is_cut(self) -> None:
        limits = {"limits": {"header_timeout": "300ms"}}
        async with live_yard({"a": fake()}, server=limits) as yard, raw(yard) as client:
            answered = asyncio.ensure_future(client.answer())
            for byte in request_bytes(body_of("a", "hi", 1, False, {})):
                if answered.done():
                    break
                client.send(bytes([byte]))
                await asyncio.wait({answered}, timeout=0.05)
            assert (await answered).status == 408
            assert await client.rest() == b""
            assert untouched(yard)

    async def test_a_body_that_trickles_is_cut(self) -> None:
        limits = {"limits": {"body_timeout": "300ms"}}
        async with live_yard({"a": fake()}, server=limits) as yard, raw(yard) as client:
            head, _, content = request_bytes(body_of("a", "hi" * 100, 1, False, {})).partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            answered = asyncio.ensure_future(client.answer())
            for byte in content:
                if answered.done():
                    break
                client.send(bytes([byte]))
                await asyncio.wait({answered}, timeout=0.02)
            answer = await answered
            assert answer.status == 408
            assert json.loads(answer.body)["error"]["code"] == "request_timeout"
            assert await client.rest() == b""
            assert untouched(yard)

    async def test_half_a_request_is_nothing(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            for size in (10, 90, 150):
                async with raw(yard) as client:
                    client.send(request_bytes(body_of("a", "hi", 1, False, {}))[:size])
            await until(lambda: not yard.yard.server._connections)
            assert untouched(yard)
