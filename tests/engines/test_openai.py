"""The adapter of remote servers: on paper, and in a yard with another yard behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.live_yard import ChildYard, LiveYard, child_yard, fake, live_yard, right_text, short_folder
from modelyard.core.types import Address, Cause, Share, Spec, WarmUp
from modelyard.engines.base import Attach, Profile
from modelyard.engines.openai import OpenAiEngine
from waiting import until
from wire.certificates import certificate, front
from wire.raw_engines import Peer, engine

ENGINE = OpenAiEngine()
PROFILE = Profile("openai", "openai")
KEY = "sk-far-away-1"
NEAR_KEY = "near-key-1"


def spec(url: str = "https://far.example", **parameters: object) -> Spec:
    return Spec("near", "d" * 64, "openai", parameters={"url": url, **parameters})


def warmed(warm_up: WarmUp, **parameters: object) -> Spec:
    return replace(spec(), parameters={**spec().parameters, **parameters}, warm_up=warm_up)


# -- on paper ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://far.example", "https://far.example"),
        ("https://far.example/v1/", "https://far.example"),
        ("http://[::1]:8000/api/v1", "http://[::1]:8000/api"),
        ("https://far.example/deep/er/", "https://far.example/deep/er"),
    ],
)
def test_its_address_is_taken_with_and_without_the_version(url: str, base: str) -> None:
    assert ENGINE.problems(spec(url), PROFILE) == []
    assert ENGINE.command(spec(url), PROFILE, (), Address(), {}) == Attach(base)


def test_the_key_goes_with_every_request_and_is_shown_nowhere() -> None:
    attach = ENGINE.command(spec(key=KEY, ca="/ca.pem"), PROFILE, (), Address(), {})
    assert attach.headers == (("authorization", f"Bearer {KEY}"),)
    assert attach.ca == "/ca.pem"
    assert KEY not in repr(attach)


@pytest.mark.parametrize(
    "url",
    [
        *("far.example", "ftp://far.example", "https://", "http://h:0", "http://h:port", 3, "http://h/a b"),
        *("https://user:word@far.example", "https://far.example?key=word", "https://far.example#word"),
    ],
)
def test_an_address_that_is_none_is_named_and_not_repeated(url: Any) -> None:
    ((path, message),) = ENGINE.problems(spec(url), PROFILE)
    assert path == "parameters.url"
    assert "word" not in message.replace("a password", "")


def test_what_else_is_wrong() -> None:
    assert dict(ENGINE.problems(Spec("m", "d" * 64, "openai"), PROFILE)).keys() == {"parameters.url"}
    sourced = Spec("m", "d" * 64, "openai", "/m.gguf", {"url": "http://h"})
    assert dict(ENGINE.problems(sourced, PROFILE)).keys() == {"source"}
    assert [path for path, _ in ENGINE.problems(spec(ca="ca.pem"), PROFILE)] == ["parameters.ca"]
    silent = warmed(WarmUp(prefixes=("Be brief.",)), apis=["embeddings"])
    assert dict(ENGINE.problems(silent, PROFILE)).keys() == {"warm_up.prefixes"}


def test_it_takes_no_memory() -> None:
    need = ENGINE.need(spec(), {})
    assert (need.shares, need.known) == ((Share("ram", 0),), True)


def test_it_is_asked_by_its_own_name() -> None:
    assert ENGINE.model_name(spec()) == "near"
    (call,) = ENGINE.warm_up(spec(model="theirs"))
    assert (call.path, json.loads(call.body)["model"]) == ("/v1/chat/completions", "theirs")
    (call,) = ENGINE.warm_up(spec(apis=["embeddings"]))
    assert call.path == "/v1/embeddings"
    (call,) = ENGINE.warm_up(spec(generate=False))
    assert (call.method, call.path) == ("GET", "/v1/models")
    assert len(ENGINE.warm_up(warmed(WarmUp(prompts=("a", "b")), generate=False))) == 2


@pytest.mark.parametrize(
    ("status", "cause", "said"),
    [
        (401, Cause.BAD_ARGUMENTS, "parameters.key is missing"),
        (404, Cause.BAD_MODEL, "has no model 'near' (parameters.model is its name there)"),
        (308, Cause.BAD_ARGUMENTS, "parameters.url leads elsewhere"),
        (400, Cause.BAD_MODEL, "parameters.generate"),
        (429, Cause.LAUNCH, ""),
        (503, Cause.LAUNCH, ""),
    ],
)
def test_what_a_refusal_means(status: int, cause: Cause, said: str) -> None:
    told = ENGINE.refused(spec(), status)
    assert told is not None
    assert told[0] is cause
    assert said in told[1]
    assert ENGINE.refused(spec(), 418) is None


# -- with a yard behind it --------------------------------------------------------------------------------


def far(port: int, **fields: Any) -> dict[str, Any]:
    parameters = {"url": f"http://localhost:{port}/v1", "key": KEY, "model": "there"}
    return {
        "engine": "openai",
        "slots": 4,
        **fields,
        "parameters": {**parameters, **fields.get("parameters", {})},
    }


@asynccontextmanager
async def remote(**models: Any) -> AsyncIterator[tuple[ChildYard, Path]]:
    """A yard in another process that wants a key, and the socket it listens on."""
    key = {"name": "near", "key": KEY, "scopes": ["inference", "admin"]}
    with short_folder() as folder:
        async with child_yard(folder, models or {"there": fake()}, keys=[key]) as child:
            child.http.headers["authorization"] = f"Bearer {KEY}"
            yield child, folder / "yard.sock"


@asynccontextmanager
async def pair(
    models: dict[str, Any] | None = None, there: dict[str, Any] | None = None
) -> AsyncIterator[tuple[LiveYard, ChildYard]]:
    """A yard whose model `near` is `there` in another one; `models` are its fields."""
    async with AsyncExitStack() as stack:
        child, socket = await stack.enter_async_context(remote(there=there or fake()))
        port = await stack.enter_async_context(front(None, socket))
        yard = await stack.enter_async_context(live_yard({"near": far(port, **(models or {}))}))
        yield yard, child


async def test_answers_and_streams_are_those_of_the_remote() -> None:
    async with pair() as (yard, child):
        answer = await yard.chat("near", "Hello", tokens=6)
        assert (answer.status, answer.text) == (200, right_text("there", "Hello", 6)), answer.body
        assert (await child.chat("there", "Hello", tokens=6)).text == answer.text
        stream = await yard.stream("near", "Hello", tokens=6)
        assert stream.text == answer.text
        assert stream.done
        nameless = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6}
        assert (await yard.post("/v1/chat/completions", nameless)).text == answer.text
        refused = await yard.post("/v1/embeddings", {"model": "near", "input": "a"})
        assert (refused.status, refused.code) == (501, "not_supported")
        assert yard.reserved() == 0
        assert yard.pids("near") == []


async def test_tls_with_a_certificate_that_is_told(tmp_path: Path) -> None:
    made, context = certificate(tmp_path)
    async with remote() as (_, socket), front(context, socket) as port:
        secure = {"url": f"https://localhost:{port}"}
        models = {
            "near": far(port, parameters={**secure, "ca": str(made)}),
            "wary": far(port, parameters=secure),
        }
        async with live_yard(models) as yard:
            assert (await yard.chat("near", "Hello")).text == right_text("there", "Hello", 4)
            assert (await yard.stream("near", "Hello")).text == right_text("there", "Hello", 4)
            refused = await yard.chat("wary")
            assert (refused.status, refused.code) == (503, "cannot_load")
            assert "is not trusted: self-signed certificate" in refused.message


@pytest.mark.parametrize(
    ("parameters", "code", "said"),
    [
        ({"key": "sk-wrong-one"}, "cannot_load", "parameters.key is not taken by http://localhost:"),
        ({"model": "no-such"}, "cannot_load", "has no model 'no-such' (parameters.model"),
        (
            {"url": "http://no-such-host.invalid"},
            "load_failed",
            "cannot connect to http://no-such-host.invalid",
        ),
        ({"url": "http://localhost:1"}, "load_failed", "cannot connect to http://localhost:1: "),
    ],
)
async def test_what_is_wrong_is_said_with_its_place(parameters: dict[str, Any], code: str, said: str) -> None:
    async with pair({"parameters": parameters}) as (yard, _):
        with capture_logs() as logs:
            refused = await yard.chat("near")
        assert (refused.status, refused.code) == (503, code), refused.body
        assert said in refused.message
        assert "sk-" not in refused.message + repr(logs)


async def test_its_key_is_shown_nowhere() -> None:
    async with pair() as (yard, _):
        assert (await yard.chat("near")).status == 200
        paths = ["status", "models", "instances", "queues", "journal", "explain/near"]
        for path in ["/v1/models", "/v1/engines", "/metrics", *(f"/admin/{path}" for path in paths)]:
            shown = await yard.http.get(path)
            assert KEY not in shown.text, path
        shown = await yard.http.get("/v1/models/near")
        assert shown.status_code == 200
        assert KEY not in shown.text
        assert KEY not in repr(yard.driver.notes.kept)
        (instance,) = yard.instances("near")
        endpoint = yard.driver.commands.residents[instance.id].endpoint
        assert endpoint is not None
        assert KEY not in f"{endpoint.address} {endpoint.address!r}"


async def test_where_keys_go_is_said_by_files_alone() -> None:
    async with remote() as (_, socket), front(None, socket) as port:
        url = f"http://localhost:{port}"
        profile = {"type": "openai", "defaults": {"url": url, "key": KEY, "model": "there"}}
        async with live_yard({"near": far(port)}, engines={"provider": profile}) as yard:
            own = {"name": "own", "engine": "openai", "parameters": {"url": url}}
            refused = await yard.post("/v1/models", own)
            assert (refused.status, refused.code) == (422, "spec_refused"), refused.body
            assert refused.message.startswith("parameters.url: ")
            moved = {"name": "moved", "engine": "provider", "parameters": {"url": "http://else"}}
            assert (await yard.post("/v1/models", moved)).code == "spec_refused"
            made = await yard.post("/v1/models", {"name": "lent", "engine": "provider"})
            assert made.status == 201, made.body
            assert KEY not in repr(made.body)
            assert (await yard.chat("lent", "Hello")).text == right_text("there", "Hello", 4)
            assert KEY not in (await yard.http.get("/v1/engines")).text


async def test_a_client_that_leaves_frees_the_slot_there() -> None:
    slow = fake(parameters={"tokens_per_second": 100})
    async with pair(there=slow) as (yard, child):
        async with yard.open_stream("near", tokens=1500) as (stream, more):
            await anext(more)
            assert stream.status == 200
        began = asyncio.get_running_loop().time()
        assert (await child.chat("there", tokens=2)).status == 200  # it has one slot
        assert asyncio.get_running_loop().time() - began < 10
        await yard.settled()


async def test_a_remote_that_vanishes_in_a_stream_is_named_and_found_again() -> None:
    slow = fake(parameters={"tokens_per_second": 100})
    async with remote(there=slow) as (_, socket), AsyncExitStack() as stack:
        port = await stack.enter_async_context(front(None, socket))
        async with live_yard({"near": far(port)}) as yard:
            async with yard.open_stream("near", tokens=1500) as (stream, more):
                await anext(more)
                await stack.aclose()
                async for _ in more:
                    pass
            assert stream.code == "engine_died"
            assert not stream.done
            refused = await yard.chat("near")
            assert (refused.status, refused.code) == (503, "load_failed"), refused.body
            assert "cannot connect to" in refused.message
            await stack.enter_async_context(front(None, socket, port))

            async def answers() -> bool:
                return (await yard.chat("near")).status == 200

            await until(answers)


async def test_no_more_are_sent_at_once_than_it_has_slots() -> None:
    most = at_once = 0

    async def answering(peer: Peer) -> None:
        nonlocal most, at_once
        while True:
            head, _ = await peer.request()
            at_once += head.startswith(b"POST")
            most = max(most, at_once)
            await asyncio.sleep(0.02)
            at_once -= head.startswith(b"POST")
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with engine(answering) as at:
        models = {"near": far(at.address.port, slots=3)}
        async with live_yard(models) as yard:
            await asyncio.gather(*(yard.chat("near") for _ in range(12)))
    assert most == 3


FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def replies(*answers: bytes, first: bytes = FINE) -> Any:
    """A server that says `first` to what it is to generate first, then these, the last of them for ever."""
    left = [first, *answers]

    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            posted = head.startswith(b"POST")
            await peer.send(left.pop(0) if posted and len(left) > 1 else left[-1 if posted else 0])

    return answering


def no(status: str, message: str, *headers: str) -> bytes:
    body = json.dumps({"error": {"message": message}})
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("answer", "status", "code", "said"),
    [
        (no("401 Unauthorized", "bad key"), 502, "engine_refused", "parameters.key is not taken"),
        (no("404 Not Found", "model there not found"), 502, "engine_refused", "parameters.model"),
        (
            no("302 Found", "", "Location: http://else"),
            502,
            "engine_refused",
            "parameters.url leads elsewhere",
        ),
        (no("400 Bad Request", "too hot"), 400, "invalid_request", "too hot"),
        (no("404 Not Found", "no such response"), 404, "invalid_request", "no such response"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_while_it_serves(
    answer: bytes, status: int, code: str, said: str, stream: bool
) -> None:
    async with engine(replies(answer)) as at, live_yard({"near": far(at.address.port)}) as yard:
        refused = await yard.chat("near", stream=stream)
        assert (refused.status, refused.code) == (status, code), refused.body
        assert said in refused.message


async def test_a_pause_that_is_too_long_is_passed_on() -> None:
    slower = no("429 Too Many Requests", "slower", "Retry-After: 70")
    async with engine(replies(slower)) as at:
        models = {"near": far(at.address.port, max_wait="5s")}
        async with live_yard(models) as yard:
            refused = await yard.chat("near")
            assert (refused.status, refused.code) == (429, "rate_limited"), refused.body
            assert refused.headers["retry-after"] == "70"
            refused = await yard.chat("near")  # it is not even asked
            assert (refused.status, refused.code) == (429, "wait_too_long"), refused.body
            assert 60 < int(refused.headers["retry-after"]) <= 66


async def test_a_short_pause_is_waited_for() -> None:
    slower = no("429 Too Many Requests", "slower", "Retry-After: 1")
    async with engine(replies(slower, FINE)) as at, live_yard({"near": far(at.address.port)}) as yard:
        began = asyncio.get_running_loop().time()
        assert (await yard.chat("near")).status == 200
        assert asyncio.get_running_loop().time() - began > 0.9


async def test_one_whose_rate_is_used_up_when_it_is_loaded_serves_all_the_same() -> None:
    slower = no("429 Too Many Requests", "slower", "Retry-After: 1")
    async with engine(replies(FINE, first=slower)) as at, live_yard({"near": far(at.address.port)}) as yard:
        assert (await yard.chat("near")).status == 200
        assert not yard.notes("failed")


async def test_its_rate_is_kept_to() -> None:
    async with engine(replies(FINE)) as at:
        limit = {"requests": 2, "per": "1s"}
        async with live_yard({"near": far(at.address.port, rate_limit=limit, max_wait="2.5s")}) as yard:
            await yard.load("near")
            began = asyncio.get_running_loop().time()
            answers = await asyncio.gather(*(yard.chat("near") for _ in range(10)))
            statuses = sorted(answer.status for answer in answers)
            assert statuses == [200] * 6 + [429] * 4
            assert {answer.code for answer in answers if answer.status == 429} == {"wait_too_long"}
            assert 1.9 < asyncio.get_running_loop().time() - began < 3.5
