"""Anthropic's Messages API in front of the fake engine: what is asked arrives, and answers and failures have
its shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.answers import Answer
from gateway.live_yard import LiveYard, fake, live_yard, right_text
from gateway.test_odd_engines import answered_with, json_answer, sse_answer
from modelyard.servers.fake_text import chat_prompt, expected_text
from waiting import until

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
KEYS = [{"name": "ops", "key": "o" * 20, "scopes": ["admin"]}]
WEATHER = {"name": "weather", "description": "Now.", "input_schema": {"type": "object"}}
CALLS = [
    {"name": "weather", "arguments": {"city": "Paris", "days": 3}},
    {"name": "weather", "arguments": {}},
]

Event = dict[str, Any]


def asked(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "a", "max_tokens": 4, "messages": [{"role": "user", "content": text}], **more}


def events_of(text: str) -> list[Event]:
    """The events of a stream; each says its type twice."""
    assert text.endswith("\n\n"), text[-80:]
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        found.append(event)
    return found


async def stream(yard: LiveYard, **more: Any) -> list[Event]:
    response = await yard.http.post(MESSAGES, json=asked(stream=True, **more))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream"
    return events_of(response.text)


def kinds(events: list[Event]) -> list[str]:
    """The types of the events, a run of deltas once."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event["type"]:
            found.append(event["type"])
    return found


def blocks(events: list[Event]) -> list[dict[str, Any]]:
    """The content that a stream adds up to; what was not closed is marked so."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(found)
            found.append({**event["content_block"], "open": True, "json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], found[event["index"]]
            if delta["type"] == "input_json_delta":
                block["json"] += delta["partial_json"]
            else:
                kind = delta["type"].removesuffix("_delta")
                block[kind] += delta[kind]
        elif event["type"] == "content_block_stop":
            del found[event["index"]]["open"]
    return found


def refusal(answer: Answer) -> tuple[int, str]:
    """Status and type of an error, which has this shape and no other."""
    assert set(answer.body) == {"type", "error"}, answer.body
    assert answer.body["type"] == "error"
    assert set(answer.body["error"]) == {"type", "message"}
    return answer.status, answer.body["error"]["type"]


class TestAMessage:
    async def test_is_answered_whole(self) -> None:
        async with live_yard({"a": fake(aliases=["claude-sonnet"])}) as yard:
            answer = await yard.post(
                MESSAGES, asked(model="claude-sonnet"), **{"anthropic-version": "2023-06-01"}
            )
            assert answer.status == 200
            assert answer.headers["x-modelyard-instance"] == "a-1"
            assert answer.body.pop("id").startswith("msg_")
            assert answer.body == {
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet",
                "content": [{"type": "text", "text": right_text("a", "hi", 4)}],
                "stop_reason": "max_tokens",
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 2,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 4,
                },
            }

    async def test_is_streamed(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            events = await stream(yard)
            assert kinds(events) == [
                *("message_start", "ping", "content_block_start", "content_block_delta"),
                *("content_block_stop", "message_delta", "message_stop"),
            ]
            start, end = events[0]["message"], events[-2]
            assert (start["model"], start["content"], start["stop_reason"]) == ("a", [], None)
            assert blocks(events) == [{"type": "text", "text": right_text("a", "hi", 4), "json": ""}]
            assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
            assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (2, 4)

    async def test_counts_in_the_metrics_as_any_other(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await yard.post(MESSAGES, asked())
            await stream(yard)
            traffic = yard.yard.metrics.traffic("a")
            assert traffic.ended == {("messages", "ok"): 2}
            assert (traffic.tokens_in, traffic.tokens_out) == (4, 8)

    async def test_takes_the_system_prompt_as_text_or_blocks(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            said = [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": "hi"}]
            right = expected_text("a", chat_prompt(said), 4)
            cached = {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}}
            for system in ("Be\nbrief.", [cached, {"type": "text", "text": "brief."}]):
                answer = await yard.post(MESSAGES, asked(system=system))
                assert answer.body["content"][0]["text"] == right


class TestTools:
    async def test_are_called_and_their_results_are_heard(self) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            first = asked("Weather?", tools=[WEATHER], max_tokens=100)
            answer = (await yard.post(MESSAGES, first)).body
            assert answer["stop_reason"] == "tool_use"
            calls = answer["content"]
            assert [(call["type"], call["name"], call["input"]) for call in calls] == [
                ("tool_use", "weather", {"city": "Paris", "days": 3}),
                ("tool_use", "weather", {}),
            ]
            assert len({call["id"] for call in calls}) == 2
            results = [
                {"type": "tool_result", "tool_use_id": calls[0]["id"], "content": "sun"},
                {
                    "type": "tool_result",
                    "tool_use_id": calls[1]["id"],
                    "is_error": True,
                    "content": [{"type": "text", "text": "no city"}],
                },
            ]
            first["messages"] += [
                {"role": "assistant", "content": calls},
                {"role": "user", "content": results},
            ]
            heard = [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": ""},
                {"role": "tool", "content": "sun"},
                {"role": "tool", "content": "Error:\nno city"},
            ]
            answer = (await yard.post(MESSAGES, {**first, "max_tokens": 5})).body
            assert answer["content"] == [{"type": "text", "text": expected_text("a", chat_prompt(heard), 5)}]

    async def test_are_streamed_piece_by_piece(self) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            events = await stream(yard, tools=[WEATHER], max_tokens=100)
            first, second = blocks(events)
            assert json.loads(first["json"]) == {"city": "Paris", "days": 3}
            assert json.loads(second["json"]) == {}
            assert (first["name"], first["input"], "open" in second) == ("weather", {}, False)
            deltas = [event for event in events if event["type"] == "content_block_delta"]
            assert len(deltas) > 5
            assert events[-2]["delta"]["stop_reason"] == "tool_use"

    async def test_that_max_tokens_cuts_are_no_calls(self) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            answer = (await yard.post(MESSAGES, asked(tools=[WEATHER]))).body
            assert (answer["content"], answer["stop_reason"]) == ([], "max_tokens")
            events = await stream(yard, tools=[WEATHER])
            (call,) = blocks(events)
            with pytest.raises(json.JSONDecodeError):
                json.loads(call["json"])
            assert events[-2]["delta"]["stop_reason"] == "max_tokens", "and not tool_use"

    async def test_that_max_tokens_cuts_before_their_arguments_are_no_calls_without_any(self) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            answer = (await yard.post(MESSAGES, asked(tools=[WEATHER], max_tokens=1))).body
            assert (answer["content"], answer["stop_reason"]) == ([], "max_tokens")
            events = await stream(yard, tools=[WEATHER], max_tokens=1)
            assert blocks(events) == []
            assert events[-2]["delta"]["stop_reason"] == "max_tokens"

    @pytest.mark.parametrize("order", ["crash_after_tokens", "crash_mid_event"])
    async def test_that_a_death_cuts_end_in_an_error(self, order: str) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS, order: 4})}) as yard:
            events = await stream(yard, tools=[WEATHER], max_tokens=100)
            (call,) = blocks(events)
            assert (call["name"], call["open"]) == ("weather", True)
            assert events[-1]["type"] == "error"
            assert events[-1]["error"]["type"] == "api_error"
            assert "a-1" in events[-1]["error"]["message"]
            assert "message_stop" not in kinds(events)
            await until(lambda: not yard.ready("a"))


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: %b\n\n" % json.dumps(body).encode()


def call_piece(arguments: str, **more: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"tool_calls": [{"index": 0, "id": "c1", "function": function, **more}]}


DONE = b"data: [DONE]\n\n"


class TestOddEngines:
    async def test_a_stream_that_ends_without_a_reason_is_no_answer(self) -> None:
        async with answered_with(sse_answer(chunk(call_piece("{}")))) as yard:
            events = await stream(yard)
            assert kinds(events)[-1] == "error"
            assert "before its answer was whole" in events[-1]["error"]["message"]
            assert "content_block_stop" not in kinds(events)
        for body in (b"", b": nothing\n\n", chunk({"content": "x"}) + DONE):
            async with answered_with(sse_answer(body)) as yard:
                assert refusal(await yard.post(MESSAGES, asked(stream=True))) == (502, "api_error")

    @pytest.mark.parametrize(
        ("finish", "reason"), [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")]
    )
    async def test_the_reason_is_told_in_other_words(self, finish: str, reason: str) -> None:
        body = chunk({"content": "x"}) + chunk({}, finish)
        for end in (b"", DONE):
            async with answered_with(sse_answer(body + end)) as yard:
                events = await stream(yard)
                assert events[-2]["delta"]["stop_reason"] == reason
                assert events[-1]["type"] == "message_stop"

    async def test_a_call_without_an_object_is_an_error(self) -> None:
        body = chunk(call_piece('{"city": ')) + chunk({}, "tool_calls") + DONE
        async with answered_with(sse_answer(body)) as yard:
            events = await stream(yard)
            assert kinds(events)[-1] == "error"
            assert "which is no JSON object" in events[-1]["error"]["message"]
            assert "content_block_stop" not in kinds(events)
        choice = {"message": call_piece('{"city": '), "finish_reason": "tool_calls"}
        async with answered_with(json_answer(json.dumps({"choices": [choice]}).encode())) as yard:
            answer = await yard.post(MESSAGES, asked())
            assert refusal(answer) == (502, "api_error")
            assert yard.ready("a"), "the engine works; its model does not"

    async def test_a_call_that_was_asked_for_and_not_made_is_an_error(self) -> None:
        more: dict[str, Any] = {"tools": [WEATHER], "tool_choice": {"type": "any"}}
        for finish, failed in (("stop", True), ("length", False)):
            async with answered_with(sse_answer(chunk({"content": "x"}, finish) + DONE)) as yard:
                events = await stream(yard, **more)
                assert (events[-1]["type"] == "error") == failed
            choice = {"message": {"content": "x"}, "finish_reason": finish}
            async with answered_with(json_answer(json.dumps({"choices": [choice]}).encode())) as yard:
                answer = await yard.post(MESSAGES, asked(**more))
                assert answer.status == (502 if failed else 200)
                if failed:
                    assert "`tool_choice`" in answer.body["error"]["message"]

    async def test_an_error_event_is_passed_on_in_shape(self) -> None:
        body = chunk({"content": "x"}) + b'data: {"error":{"message":"full"}}\n\n' + DONE
        async with answered_with(sse_answer(body)) as yard:
            assert (await stream(yard))[-1]["error"] == {"type": "api_error", "message": "full"}

    async def test_a_stop_sequence_that_is_told_is_told_on(self) -> None:
        choice = {"message": {"content": "x"}, "finish_reason": "stop", "stop_reason": "END"}
        async with answered_with(json_answer(json.dumps({"choices": [choice]}).encode())) as yard:
            answer = (await yard.post(MESSAGES, asked())).body
            assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END")


class TestThinking:
    async def test_comes_before_the_text(self) -> None:
        async with live_yard({"a": fake(parameters={"thinking_tokens": 3})}) as yard:
            more: dict[str, Any] = {"max_tokens": 7, "thinking": {"type": "enabled", "budget_tokens": 1024}}
            content = (await yard.post(MESSAGES, asked(**more))).body["content"]
            thought, text = content
            assert (thought["type"], len(thought["thinking"].split())) == ("thinking", 3)
            assert text == {"type": "text", "text": right_text("a", "hi", 4)}
            streamed = blocks(await stream(yard, **more))
            assert [block["type"] for block in streamed] == ["thinking", "text"]
            assert streamed[0]["thinking"] == thought["thinking"]
            again = [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": content},
                {"role": "user", "content": "and?"},
            ]
            assert (await yard.post(MESSAGES, asked(messages=again))).status == 200

    async def test_can_be_left_out_or_hidden(self) -> None:
        async with live_yard({"a": fake(parameters={"thinking_tokens": 3})}) as yard:
            hidden = {"type": "adaptive", "display": "omitted"}
            for thinking, tokens in (({"type": "disabled"}, 7), (hidden, 4)):
                answer = (await yard.post(MESSAGES, asked(thinking=thinking, max_tokens=7))).body
                assert answer["content"] == [{"type": "text", "text": right_text("a", "hi", tokens)}]
                (text,) = blocks(await stream(yard, thinking=thinking, max_tokens=7))
                assert text["text"] == right_text("a", "hi", tokens)


class TestErrors:
    async def test_have_anthropics_shape_before_any_model_is_asked(self) -> None:
        limits = {"limits": {"body": "1KiB"}}
        async with live_yard({"a": fake(), "b": fake()}, server=limits) as yard:
            cases: list[tuple[Any, int, str]] = [
                (asked(model="nobody"), 404, "not_found_error"),
                ({"messages": []}, 400, "invalid_request_error"),
                (asked(stream="yes"), 400, "invalid_request_error"),
                (asked("x" * 2000), 413, "request_too_large"),
            ]
            for body, status, kind in cases:
                for path in (MESSAGES, COUNT):
                    assert refusal(await yard.post(path, body)) == (status, kind)
            response = await yard.http.get(MESSAGES)
            assert refusal(Answer(response.status_code, {}, response.json())) == (
                405,
                "invalid_request_error",
            )
            assert response.headers["allow"] == "POST"
            assert refusal(await yard.post(f"{MESSAGES}/batches", {})) == (404, "not_found_error")
            response = await yard.http.post(MESSAGES, content=b"{")
            assert refusal(Answer(response.status_code, {}, response.json())) == (
                400,
                "invalid_request_error",
            )
            assert yard.state.sequence == 0

    async def test_of_keys_have_it_too(self) -> None:
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            assert refusal(await yard.post(MESSAGES, asked())) == (401, "authentication_error")
            forbidden = await yard.post(MESSAGES, asked(), **{"x-api-key": "o" * 20})
            assert refusal(forbidden) == (403, "permission_error")

    async def test_of_what_waits_have_it_too(self) -> None:
        async with live_yard({"a": fake(parameters={"tokens_per_second": 20.0}, queue_bound=1)}) as yard:
            await yard.load("a")
            async with yard.open_stream("a", tokens=100) as (_, more):
                await anext(more)
                waiting = asyncio.create_task(yard.post(MESSAGES, asked()))
                await until(lambda: yard.waiting() == 1)
                full = await yard.post(MESSAGES, asked())
                assert refusal(full) == (429, "rate_limit_error")
                assert int(full.headers["retry-after"]) >= 1
            assert (await waiting).status == 200
        broken = fake(parameters={"exit_code": 1, "exit_log": "error: failed to load model: torn"})
        async with live_yard({"a": broken}) as yard:
            failed = await yard.post(MESSAGES, asked())
            assert refusal(failed) == (503, "api_error")
            assert "torn" in failed.body["error"]["message"]

    async def test_of_the_engine_are_translated(self) -> None:
        async with live_yard({"a": fake(parameters={"context": 8})}) as yard:
            long = await yard.post(MESSAGES, asked("one two three four five six seven eight"))
            assert refusal(long) == (400, "invalid_request_error")
            assert long.body["error"]["message"].startswith("prompt is too long: ")
        body = b'{"error":{"code":422,"message":"odd","type":"x"}}'
        answer = b"HTTP/1.1 422 X\r\ncontent-type: text/x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        async with answered_with(answer) as yard:
            odd = await yard.post(MESSAGES, asked())
            assert refusal(odd) == (422, "invalid_request_error")
            assert odd.body["error"]["message"] == "odd"
            assert odd.headers["content-type"] == "application/json"

    async def test_pings_keep_a_client_until_it_is_told(self) -> None:
        parameters = {"load_time": 0.4, "exit_code": 1, "exit_log": "error: failed to load model: torn"}
        settings = {"server": {"heartbeat_after": "50ms"}}
        async with live_yard({"a": fake(parameters=parameters)}, **settings) as yard:
            assert kinds(await stream(yard)) == ["ping", "error"]
        async with live_yard({"a": fake(parameters={"load_time": 0.4})}, **settings) as yard:
            assert kinds(await stream(yard))[:3] == ["ping", "message_start", "ping"]


class TestModels:
    async def test_are_listed_for_anthropics_clients(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            headers = {"anthropic-version": "2023-06-01"}
            listed = (await yard.http.get("/v1/models", headers=headers)).json()
            assert [(model["type"], model["id"]) for model in listed["data"]] == [
                ("model", "a"),
                ("model", "b"),
            ]
            assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "a", "b")
            one = (await yard.http.get("/v1/models/b", headers=headers)).json()
            assert one == listed["data"][1]
            lost = await yard.http.get("/v1/models/c", headers=headers)
            assert refusal(Answer(lost.status_code, {}, lost.json())) == (404, "not_found_error")


class TestCounting:
    async def test_asks_the_models_tokenizer(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            body = asked("twelve chars", system="four")
            del body["max_tokens"]
            answer = await yard.post(COUNT, body)
            assert (answer.status, answer.body) == (
                200,
                {"input_tokens": 5},
            )  # "four\ntwelve chars", by fours

    async def test_is_refused_where_there_is_none(self) -> None:
        async with live_yard({"a": fake(parameters={"apis": ["chat"]})}) as yard:
            answer = await yard.post(COUNT, asked())
            assert refusal(answer) == (501, "invalid_request_error")
            assert "cannot count tokens" in answer.body["error"]["message"]
            assert yard.state.sequence == 0
