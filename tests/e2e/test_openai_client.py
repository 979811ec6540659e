"""OpenAI's own client against a yard: what it sends is understood, what it gets it understands."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from engines.demo_model import demo_gguf
from gateway.live_yard import SHARE, LiveYard, fake, live_yard, right_text

pytestmark = pytest.mark.e2e


@asynccontextmanager
async def client_of(
    models: Mapping[str, Any], **settings: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, LiveYard]]:
    async with live_yard(models, **settings) as yard:
        over_socket: Any = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(yard.socket)))
        async with openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="none", http_client=over_socket
        ) as client:
            yield client, yard


async def test_chats() -> None:
    async with client_of({"a": fake()}) as (client, _):
        answer = await client.chat.completions.create(
            model="a", messages=[{"role": "user", "content": "hi"}], max_tokens=5
        )
        assert answer.choices[0].message.content == right_text("a", "hi", 5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5


async def test_streams_with_usage() -> None:
    async with client_of({"a": fake()}) as (client, _):
        stream = await client.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == right_text("a", "hi", 5)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5


async def test_reads_progress_as_chunks_without_choices() -> None:
    async with client_of({"a": fake(parameters={"load_time": 0.3})}) as (client, _):
        stream = await client.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=5,
            stream=True,
            extra_headers={"X-Progress": "sse"},
        )
        chunks = [chunk async for chunk in stream]
        states = [getattr(chunk, "state", None) for chunk in chunks if not chunk.choices]
        assert (states[0], states[-1]) == ("loading", "serving")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == right_text("a", "hi", 5)


async def test_lists_models_and_embeds() -> None:
    async with client_of({"a": fake(), "b": fake()}) as (client, _):
        assert sorted([model.id async for model in client.models.list()]) == ["a", "b"]
        answer = await client.embeddings.create(model="b", input=["one", "two"], encoding_format="float")
        assert [item.index for item in answer.data] == [0, 1]
        assert all(-1 <= value <= 1 for item in answer.data for value in item.embedding)


async def test_is_told_which_model_there_is_not() -> None:
    async with client_of({"a": fake()}) as (client, _):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="aa", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.code == "model_not_found"
        assert "Did you mean 'a'?" in str(caught.value)


async def test_does_not_retry_what_can_never_fit() -> None:
    model = fake(2 * SHARE, parameters={"oom_at_load": True})
    async with client_of({"a": model}, memory=2 * SHARE) as (client, yard):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="a", messages=[{"role": "user", "content": "hi"}])
        assert caught.value.code == "never_fits"
        metrics = (await yard.http.get("/metrics")).text
        assert 'modelyard_requests_total{model="a",outcome="never_fits",path="chat"} 1' in metrics


async def test_waits_as_long_as_it_is_told_and_then_succeeds() -> None:
    """A model that backs off after a failed start says for how long; the client comes back after that."""
    model = fake(parameters={"exit_code": 1, "exit_log": "error: the moon is full"})
    async with client_of({"a": model}) as (client, _):
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.with_options(max_retries=1).chat.completions.create(
                model="a", messages=[{"role": "user", "content": "hi"}]
            )
        assert caught.value.code == "load_failed"
        assert time.monotonic() - began >= 1.0, "Retry-After was at least a second"


async def test_gets_the_error_that_ends_a_stream() -> None:
    async with client_of({"a": fake()}) as (client, _):
        stream = await client.chat.completions.create(
            model="a",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=8,
            stream=True,
            extra_body={"fake": {"crash_after_tokens": 3}},
        )
        seen = []
        with pytest.raises(openai.APIError) as caught:
            seen.extend([chunk async for chunk in stream])
        assert caught.value.code == "engine_died"


async def test_swaps_real_models() -> None:
    """Two names for one real model in memory for one: a chat and a stream of each, in turn."""
    model = {"engine": "llamacpp", "source": str(demo_gguf()), "devices": ["ram"]}
    models = {
        "a": {**model, "parameters": {"context": 512, "mmap": False, "threads": 1}},
        "b": {**model, "parameters": {"context": 768, "mmap": False, "threads": 1}},
    }
    devices = {"ram": {"memory": "300MB", "reserve": 0}}
    async with client_of(models, devices=devices) as (client, yard):
        texts = set()
        for name in "abab":
            answer = await client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Say yes."}], max_tokens=8, temperature=0
            )
            stream = await client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "Say yes."}],
                max_tokens=8,
                temperature=0,
                stream=True,
            )
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            texts |= {answer.choices[0].message.content, "".join(parts)}
        assert len(texts) == 1, "greedy text is the same whichever instance wrote it"
        assert yard.state.sequence == 4
