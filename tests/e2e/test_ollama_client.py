"""Ollama's own client against a yard: what it sends is understood, what it gets it understands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import ollama
import pytest

from e2e.real_models import demo_sections
from gateway.live_yard import LiveYard, fake, live_yard, right_text
from modelyard.servers.fake_text import embedding
from waiting import until

pytestmark = pytest.mark.e2e

CALL = {"name": "weather", "arguments": {"city": "Paris", "days": [1, 2, 3]}}


def weather(city: str, days: list[int]) -> str:
    """The weather of a city.

    Args:
        city: where
        days: when
    """
    return f"sun in {city}, {days}"


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def client_of(
    models: Mapping[str, Any], **settings: Any
) -> AsyncIterator[tuple[ollama.AsyncClient, LiveYard]]:
    async with live_yard(models, **settings) as yard:
        transport = httpx.AsyncHTTPTransport(uds=str(yard.socket))
        client = ollama.AsyncClient(host="http://localhost", transport=transport, timeout=280)
        try:
            yield client, yard
        finally:
            await client._client.aclose()


async def test_talks_whole_and_streamed() -> None:
    async with client_of({"a": fake()}) as (client, _):
        options = ollama.Options(num_predict=5)
        answer = await client.chat(model="a", messages=said("hi"), options=options)
        assert answer.message.content == right_text("a", "hi", 5)
        assert (answer.done, answer.eval_count) == (True, 5)
        stream = await client.chat(model="a:latest", messages=said("hi"), options=options, stream=True)
        parts = [part async for part in stream]
        assert "".join(part.message.content or "" for part in parts) == right_text("a", "hi", 5)
        assert (parts[-1].done_reason, parts[-1].prompt_eval_count) == ("length", 2)
        generated = await client.generate(model="a", prompt="hi", options=options)
        assert generated.response == right_text("a", "hi", 5)


async def test_calls_tools_and_brings_their_results() -> None:
    async with client_of({"a": fake(parameters={"tool_calls": [CALL]})}) as (client, _):
        talk: list[Any] = said("Weather?")
        stream = await client.chat(model="a", messages=talk, tools=[weather], stream=True)
        streamed = [call async for part in stream for call in part.message.tool_calls or ()]
        answer = await client.chat(model="a", messages=talk, tools=[weather])
        for calls in (streamed, answer.message.tool_calls or ()):
            (call,) = calls
            assert (call.function.name, call.function.arguments) == ("weather", CALL["arguments"])
        talk += [answer.message, {"role": "tool", "tool_name": "weather", "content": weather("Paris", [1])}]
        again = await client.chat(model="a", messages=talk, tools=[weather])
        assert again.message.content
        assert not again.message.tool_calls


async def test_embeds_lists_shows_and_pulls() -> None:
    async with client_of({"a": fake(), "b": fake()}) as (client, _):
        embedded = await client.embed(model="a", input=["one", "two"])
        assert [list(vector) for vector in embedded.embeddings] == [
            embedding("a", "one"),
            embedding("a", "two"),
        ]
        older = await client.embeddings(model="a", prompt="one")
        assert list(older.embedding) == embedding("a", "one")
        assert [model.model for model in (await client.list()).models] == ["a", "b"]
        (running,) = (await client.ps()).models
        assert (running.model, running.size_vram) == ("a", 4_000_000)
        assert running.expires_at is not None
        shown = await client.show("b")
        assert shown.capabilities == ["completion", "embedding", "tools"]
        assert shown.details is not None
        pulled = [part.status async for part in await client.pull("b", stream=True)]
        assert pulled[-1] == "success"


async def test_keeps_a_model_as_long_as_it_says() -> None:
    async with client_of({"a": fake()}) as (client, yard):
        await client.chat(model="a", messages=said("hi"), keep_alive="1h")
        instance = yard.ready("a")
        assert instance is not None
        assert instance.keep_alive == 3600.0
        await client.generate(model="a", keep_alive=0)
        await until(lambda: not yard.instances("a"))


async def test_gets_errors_as_its_own_exception() -> None:
    model = fake(parameters={"tool_calls": [CALL], "crash_after_tokens": 4})
    async with client_of({"a": model}) as (client, _):
        with pytest.raises(ollama.ResponseError, match="Did you mean 'a'") as unknown:
            await client.chat(model="aa", messages=said("hi"))
        assert unknown.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match=r"There is no model 'llama3\.2'"):
            await client.pull("llama3.2")
        with pytest.raises(ollama.ResponseError, match="num_predict"):
            await client.chat(model="a", messages=said("hi"), options={"num_predict": "x"})
        stream = await client.chat(model="a", messages=said("Weather?"), tools=[weather], stream=True)
        with pytest.raises(ollama.ResponseError, match="a-1"):
            [part async for part in stream]


@pytest.mark.timeout(300)
async def test_a_real_model() -> None:
    demo = demo_sections()
    vectors = {
        **demo["models"]["smol-fast"],
        "aliases": [],
        "parameters": {"context": 512, "embedding": True, "pooling": "mean"},
    }
    models = {**demo.pop("models"), "vectors": vectors}
    async with client_of(models, **demo, defaults={"max_wait": "4m"}) as (client, _):
        options = {"num_predict": 6, "temperature": 0, "num_ctx": 512}
        asked: dict[str, Any] = {"model": "smol-fast", "messages": said("Say yes."), "options": options}
        answer = await client.chat(**asked)
        stream = await client.chat(**asked, stream=True)
        parts = [part async for part in stream]
        assert answer.message.content == "".join(part.message.content or "" for part in parts) != ""
        assert answer.eval_count == parts[-1].eval_count == 6
        assert (answer.eval_duration or 0) > 0, "llama.cpp tells how long it took"
        raw = await client.generate(model="smol-fast", prompt="Once upon a", raw=True, options=options)
        assert raw.response
        shaped = await client.generate(
            model="smol-fast",
            prompt="Say yes.",
            format={"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]},
            options={"num_predict": 40, "temperature": 0},
        )
        assert json.loads(shaped.response or "") == {"a": 7}
        embedded = await client.embed(model="vectors", input=["the sea", "a tax form"])
        assert [len(vector) for vector in embedded.embeddings] == [576, 576]
        shown = await client.show("smol-fast")
        assert shown.details is not None
        assert (shown.details.family, shown.details.quantization_level) == ("llama", "Q4_1")
