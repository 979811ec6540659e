"""OpenAI's client on the three real models of the demo, which share memory that has room for two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from e2e.real_models import demo_sections
from engines.gguf_file import gguf
from gateway.live_yard import LiveYard, live_yard
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CLIENTS = 16
MODELS = ("smol-long", "smol-fast", "smol-wide")
PATIENT = {"max_wait": "4m"}  # sixteen clients on two busy cores


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def demo_yard(
    more: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, LiveYard]]:
    """The demo's models, and `more`, with OpenAI's client, which retries nothing."""
    demo = demo_sections()
    models = {**demo.pop("models"), **(more or {})}
    settings = {"defaults": PATIENT, **settings}
    async with live_yard(models, **demo, **settings) as yard:
        over_socket: Any = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(yard.socket)))
        async with openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            http_client=over_socket,
            max_retries=0,
            timeout=280,
        ) as client:
            yield client, yard


async def whole(client: openai.AsyncOpenAI, model: str, tokens: int = 8) -> str:
    answer = await client.chat.completions.create(
        model=model, messages=said("Say yes."), max_tokens=tokens, temperature=0
    )
    assert answer.model == model
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= tokens
    return answer.choices[0].message.content or ""


async def streamed(client: openai.AsyncOpenAI, model: str, tokens: int = 8) -> str:
    stream = await client.chat.completions.create(
        model=model,
        messages=said("Say yes."),
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert len({chunk.id for chunk in chunks}) == 1
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_sixteen_clients_over_three_models_all_get_their_answers() -> None:
    async with demo_yard() as (client, yard):

        async def one(number: int) -> str:
            ask = streamed if number % 2 else whole
            return await ask(client, MODELS[number % 3])

        texts = await asyncio.gather(*(one(number) for number in range(CLIENTS)))
        assert all(texts), texts
        await yard.settled()
        for name in MODELS:
            ended = yard.yard.metrics.traffic(name).ended
            assert {outcome for _, outcome in ended} == {"ok"}, (name, ended)
        swaps = yard.state.sequence - len(MODELS)
        print(
            f"{CLIENTS} clients over {len(MODELS)} models: {yard.state.sequence} loads, {swaps} of them again"
        )
        assert swaps <= len(MODELS), "requests are grouped by model"


async def test_every_endpoint_of_a_chat_model() -> None:
    async with demo_yard() as (client, yard):
        name = "smol-fast"
        assert await whole(client, name) == await streamed(client, "smol"), "greedy text, whole and streamed"
        completed = await client.completions.create(model=name, prompt="Once upon a", max_tokens=4)
        assert completed.choices[0].text
        response = await client.responses.create(model=name, input="Say yes.", max_output_tokens=8)
        assert response.output_text
        tokens = (await yard.post("/tokenize", {"model": name, "content": "Once upon a time"})).body["tokens"]
        assert len(tokens) >= 4
        text = (await yard.post("/detokenize", {"model": name, "tokens": tokens})).body["content"]
        assert text == "Once upon a time"
        short = await yard.post("/generate", {"model": name, "prompt": "Once upon a", "max_tokens": 4})
        assert short.body["text"]
        assert short.body["usage"]["completion_tokens"] == 4
        listed = [model.id async for model in client.models.list()]
        assert sorted(listed) == sorted(MODELS)
        assert (await client.models.retrieve("smol")).id == name


async def test_errors_arrive_as_openais_exceptions() -> None:
    async with demo_yard(server={"limits": {"body": "256KiB"}}) as (client, yard):
        with pytest.raises(openai.NotFoundError) as unknown:
            await whole(client, "smol-fst")
        assert unknown.value.code == "model_not_found"
        assert "'smol-fast'" in str(unknown.value)
        with pytest.raises(openai.BadRequestError) as long:
            await client.chat.completions.create(model="smol-fast", messages=said("sea " * 2000))
        assert long.value.code == "context_length_exceeded"
        assert long.value.param == "messages"
        assert "1024" in str(long.value)
        with pytest.raises(openai.BadRequestError) as long_stream:
            await client.chat.completions.create(model="smol-fast", messages=said("sea " * 2000), stream=True)
        assert long_stream.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="smol-fast", messages=[{"content": 7}])  # type: ignore
        image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="image input is not supported"):
                await client.chat.completions.create(
                    model="smol-fast", messages=[{"role": "user", "content": [image]}], stream=stream
                )
        nameless: Any = {"type": "function"}
        with pytest.raises(openai.BadRequestError, match="tool function"):
            await client.chat.completions.create(model="smol-fast", messages=said("hi"), tools=[nameless])
        for token in (-5, 999_999_999):
            answer = await yard.post("/detokenize", {"model": "smol-fast", "tokens": [token]})
            assert (answer.status, answer.body["error"]["param"]) == (400, "tokens")
        with pytest.raises(openai.APIStatusError) as large:
            await client.chat.completions.create(model="smol-fast", messages=said("x" * 300_000))
        assert (large.value.status_code, large.value.code) == (413, "body_too_large")
        with pytest.raises(openai.APIStatusError) as unable:
            await client.embeddings.create(model="smol-fast", input="hi")
        assert (unable.value.status_code, unable.value.code) == (501, "not_supported")
        assert "it serves /detokenize, /tokenize, /v1/chat/completions" in str(unable.value)
        for path in ("/v1/rerank", "/v1/embeddings"):
            answer = await yard.post(path, {"model": "smol-fast", "input": "hi"})
            assert (answer.status, answer.headers["x-should-retry"]) == (501, "false")


async def test_a_full_queue_arrives_as_a_rate_limit() -> None:
    demo = demo_sections()
    busy = {**demo["models"]["smol-fast"], "queue_bound": 1, "aliases": []}
    async with demo_yard({"busy": busy}) as (client, yard):
        await yard.load("busy")
        running = await client.chat.completions.create(
            model="busy",
            messages=said("Count to a thousand."),
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await anext(aiter(running))
        waiting = asyncio.create_task(whole(client, "busy", 1))
        await until(lambda: yard.waiting() == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await whole(client, "busy", 1)
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        await running.close()
        assert await waiting


async def test_a_model_for_embeddings() -> None:
    demo = demo_sections()
    vectors = {
        **demo["models"]["smol-fast"],
        "aliases": [],
        "parameters": {"context": 512, "embedding": True, "pooling": "mean"},
    }
    async with demo_yard({"vectors": vectors}) as (client, yard):
        answer = await client.embeddings.create(model="vectors", input=["the sea", "the sea", "a tax form"])
        assert [item.index for item in answer.data] == [0, 1, 2]
        same, again, other = (item.embedding for item in answer.data)
        assert same == pytest.approx(again, abs=1e-3)
        assert same != pytest.approx(other, abs=1e-3)
        assert len(same) == 576
        listed = json.loads((await yard.http.get("/v1/models/vectors")).text)
        assert listed["modelyard"]["capabilities"] == ["embedding"]
        with pytest.raises(openai.APIStatusError) as unable:
            await whole(client, "vectors")
        assert (unable.value.status_code, unable.value.code) == (501, "not_supported")


async def test_a_file_that_the_engine_does_not_know_is_not_to_be_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    file.write_bytes(gguf({"general.architecture": "moonshine", "moonshine.block_count": 1}))
    model = {"engine": "cpu", "source": str(file)}
    async with demo_yard({"odd": model}) as (_, yard):
        answer = await yard.chat("odd")
        assert (answer.status, answer.code) == (503, "cannot_load")
        assert "unknown model architecture: 'moonshine'" in answer.message
        assert answer.headers["x-should-retry"] == "false"
