"""Models in the memory of a server that is not ours: what it says of them counts, and is looked at again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.live_yard import LiveYard, live_yard
from modelyard.launchers import attached
from waiting import until
from wire.raw_engines import Answering, Peer, engine

SIZE = 300_000_000
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Ollama:
    """As much of its API as is asked for; `refusal` is the error of every load."""

    def __init__(self) -> None:
        self.loaded: dict[str, int] = {}
        self.refusal = ""

    def answer(self, head: str, body: bytes) -> tuple[int, object]:
        if head.startswith("POST /api/generate"):
            asked = json.loads(body)
            if self.refusal:
                return 500, {"error": self.refusal}
            self.loaded.pop(asked["model"], None)
            if asked["keep_alive"] == -1:
                self.loaded[asked["model"]] = SIZE
        if head.startswith("GET /api/ps"):
            listed = [{"name": name, "size": size, "size_vram": 0} for name, size in self.loaded.items()]
            return 200, {"models": listed}
        return 200, ANSWER

    async def __call__(self, peer: Peer) -> None:
        while True:
            head, body = await peer.request()
            await peer.send(said(*self.answer(head.decode(), body)))


def said(status: int, answer: object, more: bytes = b"") -> bytes:
    """An answer, with `more` lines of its head."""
    data = json.dumps(answer).encode()
    kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
    return b"HTTP/1.1 %d X\r\n" % status + more + kind + data


@asynccontextmanager
async def far(answering: Answering, **parameters: Any) -> AsyncIterator[LiveYard]:
    """A yard whose model `a` is at a provider of OpenAI's API."""
    async with engine(answering) as at:
        url = f"http://127.0.0.1:{at.address.port}"
        model = {"engine": "openai", "load_cap": "5s", "parameters": {"url": url, **parameters}}
        async with live_yard({"a": model}) as yard:
            yield yard


@asynccontextmanager
async def beside(ollama: Ollama) -> AsyncIterator[LiveYard]:
    model: dict[str, Any] = {"engine": "there", "devices": ["ram"]}
    async with engine(ollama) as at:
        engines = {"there": {"type": "ollama", "defaults": {"url": f"http://127.0.0.1:{at.address.port}"}}}
        async with live_yard({"a:x": model}, engines=engines) as yard:
            yield yard


async def test_what_it_says_of_a_models_memory_counts_and_is_reserved_next_time() -> None:
    ollama = Ollama()
    async with beside(ollama) as yard:
        instance = await yard.load("a:x")
        assert ollama.loaded == {"a:x": SIZE}
        await yard.driver.observer.look()
        account = yard.state.ledger.devices["ram"]
        assert account.holds(instance.id)[1] == SIZE
        await yard.unload("a:x")
        await until(lambda: not yard.state.instances)
        assert ollama.loaded == {}
        again = await yard.load("a:x")
        assert SIZE <= account.holds(again.id)[0] <= 1.16 * SIZE


async def test_one_that_is_put_out_behind_our_back_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "EVERY", 0.02)
    ollama = Ollama()
    async with beside(ollama) as yard:
        first = await yard.load("a:x")
        ollama.loaded.clear()
        await until(lambda: yard.ready("a:x") is not first)
        (note,) = yard.notes("failed")
        assert "what it was attached to is gone" in note
        assert "has put the model out of its memory" in note
        assert (await yard.chat("a:x")).status == 200
        assert list(ollama.loaded) == ["a:x"]


@pytest.mark.parametrize("status", [301, 405, 429, 500])
async def test_a_list_of_models_that_is_not_given_is_asked_for_once(status: int) -> None:
    """Whether it serves, its first token tells."""
    looks = 0

    async def answering(peer: Peer) -> None:
        nonlocal looks
        while True:
            head, _ = await peer.request()
            if head.startswith(b"GET"):
                looks += 1
                await peer.send(b"HTTP/1.1 %d X\r\nlocation: /x\r\ncontent-length: 2\r\n\r\n{}" % status)
            else:
                await peer.send(said(200, ANSWER))

    async with far(answering) as yard:
        assert (await yard.chat("a")).status == 200
        assert looks == 1


@pytest.mark.parametrize("status", [200, 500])
async def test_what_a_provider_says_to_us_is_not_passed_on(status: int) -> None:
    lines = {
        "x-request-id": "req-1",
        "retry-after-ms": "7",
        "set-cookie": "session=secret",
        "openai-organization": "ours",
        "x-ratelimit-remaining-requests": "3",
        "access-control-allow-credentials": "true",
        "x-modelyard-queue-ms": "999",
    }
    more = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()

    async def answering(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            await peer.send(said(status if b"ours" in body else 200, ANSWER, more))

    async with far(answering) as yard:
        answer = await yard.chat("a", "ours")
        ours = {"content-type", "content-length", "date", "server", "x-modelyard-request"}
        ours |= {f"x-modelyard-{what}" for what in ("version", "instance", "queue-ms", "load-ms")}
        assert set(answer.headers) <= ours | {"x-request-id", "retry-after-ms"}
        assert (answer.headers["x-request-id"], answer.headers["retry-after-ms"]) == ("req-1", "7")
        assert answer.headers["content-type"] == "application/json"
        assert "999" not in answer.headers["x-modelyard-queue-ms"]


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize("generate", [True, False])
async def test_a_key_that_is_repeated_in_a_refusal_is_not_passed_on(status: int, generate: bool) -> None:
    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            listing = head.startswith(b"GET")
            await peer.send(said(200 if listing else status, {"error": {"message": "not sk-123456!"}}))

    async with far(answering, generate=generate, key="sk-123456") as yard:
        answer = await yard.chat("a")
        assert answer.status >= 400
        assert "not …!" in answer.message
        shown = (await yard.http.get("/admin/models")).text
        assert "sk-123456" not in str(answer.body) + shown


@pytest.mark.parametrize(("generate", "looks"), [(True, 1), (False, 2)])
async def test_one_that_sends_every_request_elsewhere_cannot_load(generate: bool, looks: int) -> None:
    lines: list[bytes] = []

    async def answering(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            lines.append(head.partition(b" ")[0])
            await peer.send(b"HTTP/1.1 308 X\r\nlocation: /x\r\ncontent-length: 2\r\n\r\n{}")

    async with far(answering, generate=generate) as yard:
        answer = await yard.chat("a")
        assert (answer.status, answer.code) == (503, "cannot_load")
        assert "parameters.url leads elsewhere" in answer.message
        assert lines.count(b"GET") == looks


async def test_too_little_memory_there_is_said_as_that() -> None:
    ollama = Ollama()
    ollama.refusal = "model requires more system memory (9.0 GiB) than is available (2.0 GiB)"
    async with beside(ollama) as yard:
        answer = await yard.chat("a:x")
        assert answer.status == 503
        assert "out_of_memory" in answer.message
        assert ollama.refusal in answer.message
