"""Anthropic's own client against a yard: what it sends is understood, what it gets it understands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import MessageParam, ToolParam

from e2e.real_models import demo_sections
from gateway.live_yard import LiveYard, fake, live_yard, right_text

pytestmark = pytest.mark.e2e

KEYS = [{"name": "user", "key": "u" * 20, "scopes": ["inference"]}]
CALL = {"name": "weather", "arguments": {"city": "Paris", "days": [1, 2, 3]}}
WEATHER: ToolParam = {"name": "weather", "description": "Now.", "input_schema": {"type": "object"}}


def said(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


@asynccontextmanager
async def client_of(
    models: Mapping[str, Any], *, key: str = "none", **settings: Any
) -> AsyncIterator[tuple[anthropic.AsyncAnthropic, LiveYard]]:
    async with live_yard(models, **settings) as yard:
        over_socket = httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(yard.socket)))
        async with anthropic.AsyncAnthropic(
            base_url="http://localhost", api_key=key, http_client=over_socket, max_retries=0, timeout=280
        ) as client:
            yield client, yard


async def test_talks_whole_and_streamed() -> None:
    async with client_of({"a": fake()}) as (client, _):
        answer = await client.messages.create(model="a", max_tokens=5, messages=said("hi"))
        (block,) = answer.content
        assert block.type == "text"
        assert block.text == right_text("a", "hi", 5)
        assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 5)
        async with client.messages.stream(model="a", max_tokens=5, messages=said("hi")) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert text == right_text("a", "hi", 5)
        assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == (
            "max_tokens",
            2,
            5,
        )


async def test_passes_progress_over() -> None:
    async with client_of({"a": fake(parameters={"load_time": 0.3})}) as (client, _):
        async with client.messages.stream(
            model="a", max_tokens=5, messages=said("hi"), extra_headers={"X-Progress": "sse"}
        ) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        assert text == right_text("a", "hi", 5)


async def test_calls_tools_and_brings_their_results() -> None:
    async with client_of({"a": fake(parameters={"tool_calls": [CALL]})}) as (client, _):
        talk = said("Weather?")
        async with client.messages.stream(
            model="a", max_tokens=100, messages=talk, tools=[WEATHER]
        ) as stream:
            final = await stream.get_final_message()
        whole = await client.messages.create(model="a", max_tokens=100, messages=talk, tools=[WEATHER])
        for answer in (final, whole):
            (call,) = answer.content
            assert call.type == "tool_use"
            assert (call.name, call.input, answer.stop_reason) == ("weather", CALL["arguments"], "tool_use")
        (call,) = whole.content
        assert call.type == "tool_use"
        talk.append({"role": "assistant", "content": whole.content})
        talk.append(
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sun"}]}
        )
        answer = await client.messages.create(model="a", max_tokens=5, messages=talk, tools=[WEATHER])
        assert [block.type for block in answer.content] == ["text"]


async def test_lists_models_and_counts_tokens() -> None:
    async with client_of({"a": fake(), "b": fake()}) as (client, _):
        listed = [model async for model in client.models.list()]
        assert [(model.type, model.id, model.display_name) for model in listed] == [
            ("model", "a", "a"),
            ("model", "b", "b"),
        ]
        assert listed[0].created_at.year >= 2024
        assert (await client.models.retrieve("b")).id == "b"
        counted = await client.messages.count_tokens(model="a", messages=said("twelve chars"))
        assert counted.input_tokens == 3


async def test_gets_errors_as_its_own_exceptions() -> None:
    async with client_of({"a": fake()}, keys=KEYS, key="u" * 20) as (client, _):
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(model="aa", max_tokens=5, messages=said("hi"))
        assert unknown.value.body == {
            "type": "error",
            "error": {"type": "not_found_error", "message": "There is no model 'aa'. Did you mean 'a'?"},
        }
        with pytest.raises(anthropic.BadRequestError, match="`container`"):
            await client.messages.create(model="a", max_tokens=5, messages=said("hi"), container="x")
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="wrong").messages.create(
                model="a", max_tokens=5, messages=said("hi")
            )


async def test_is_told_when_a_tool_call_is_cut_off() -> None:
    model = fake(parameters={"tool_calls": [CALL], "crash_after_tokens": 4})
    async with client_of({"a": model}) as (client, _):
        kinds: list[str] = []
        async with client.messages.stream(
            model="a", max_tokens=100, messages=said("Weather?"), tools=[WEATHER]
        ) as stream:
            with pytest.raises(anthropic.APIStatusError, match="api_error"):  # noqa: PT012
                async for event in stream:
                    kinds.append(event.type)  # noqa: PERF401 - a list would be lost with the error
        assert "content_block_stop" not in kinds


@pytest.mark.timeout(300)
async def test_a_real_model() -> None:
    demo = demo_sections()
    async with client_of(demo.pop("models"), **demo, defaults={"max_wait": "4m"}) as (client, _):
        system = "You are brief."
        asked: dict[str, Any] = {
            "model": "smol-fast",
            "max_tokens": 6,
            "system": system,
            "messages": said("Say yes."),
            "extra_body": {"temperature": 0},
        }
        answer = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        (block,) = answer.content
        assert block.type == "text"
        assert block.text == text != "", "greedy text, whole and streamed"
        counted = await client.messages.count_tokens(
            model="smol-fast", system=system, messages=said("Say yes.")
        )
        for usage in (answer.usage, final.usage):
            assert usage.output_tokens == 6
            assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            await client.messages.create(model="smol-fast", max_tokens=6, messages=said("sea " * 2000))
