"""Ollama's API in front of the fake engine: what is asked arrives, answers and failures have its shape, and a
keep-alive counts for the instances that are there."""

from __future__ import annotations

import asyncio
import json
from math import inf
from typing import Any

import pytest

from gateway.answers import Answer
from gateway.live_yard import LiveYard, fake, live_yard, right_text
from gateway.test_odd_engines import answered_with, json_answer, sse_answer
from modelyard.errors import DownloadFailed
from modelyard.runtime.entries import Progress
from modelyard.servers.fake_text import chat_prompt, embedding, expected_text
from waiting import until

CHAT, GENERATE, EMBED = "/api/chat", "/api/generate", "/api/embed"
KEYS = [{"name": "ops", "key": "o" * 20, "scopes": ["admin"]}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = [
    {"name": "weather", "arguments": {"city": "Paris", "days": 3}},
    {"name": "weather", "arguments": {}},
]
DONE = b"data: [DONE]\n\n"

Line = dict[str, Any]


def asked(text: str = "hi", tokens: int = 4, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "a", "messages": messages, "options": {"num_predict": tokens}, **more}


async def lines(yard: LiveYard, path: str, body: dict[str, Any]) -> list[Line]:
    """A stream of Ollama's: JSON, a line each."""
    response = await yard.http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


async def whole(yard: LiveYard, path: str, body: dict[str, Any]) -> Line:
    answer = await yard.post(path, {**body, "stream": False})
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    return answer.body


def said(found: list[Line], name: str = "content") -> str:
    return "".join(line["message"].get(name, "") for line in found)


def refusal(answer: Answer) -> tuple[int, str]:
    """Status and message of an error, which has this shape and no other."""
    assert set(answer.body) == {"error"}, answer.body
    assert isinstance(answer.body["error"], str)
    return answer.status, answer.body["error"]


class TestAChat:
    async def test_is_streamed_unless_told_otherwise(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            found = await lines(yard, CHAT, asked())
            assert said(found) == right_text("a", "hi", 4)
            assert [line["done"] for line in found] == [False] * 4 + [True]
            end = found[-1]
            assert (end["model"], end["message"]) == ("a", {"role": "assistant", "content": ""})
            assert (end["done_reason"], end["prompt_eval_count"], end["eval_count"]) == ("length", 2, 4)
            assert end["total_duration"] >= end["load_duration"] > 0

    async def test_is_answered_whole(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            found = await whole(yard, CHAT, asked())
            assert found["message"] == {"role": "assistant", "content": right_text("a", "hi", 4)}
            assert (found["done"], found["done_reason"], found["eval_count"]) == (True, "length", 4)
            traffic = yard.yard.metrics.traffic("a")
            await lines(yard, CHAT, asked())
            assert traffic.ended == {("ollama_chat", "ok"): 2}
            assert (traffic.tokens_in, traffic.tokens_out) == (4, 8)

    async def test_knows_a_model_with_and_without_its_tag(self) -> None:
        async with live_yard({"a": fake(), "b:latest": fake(), "c:7b": fake()}) as yard:
            for name in ("a", "a:latest", "b", "b:latest", "c:7b"):
                found = await whole(yard, CHAT, asked(model=name))
                assert found["model"] == name
            for name in ("c", "a:7b", "c:7b:latest:latest"):
                status, message = refusal(await yard.post(CHAT, asked(model=name)))
                assert (status, f"'{name}'" in message) == (404, True), message

    async def test_without_a_media_type_is_taken(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            headers = {"content-type": "application/x-www-form-urlencoded"}  # as curl -d sends it
            response = await yard.http.post(CHAT, content=json.dumps(asked()), headers=headers)
            assert response.status_code == 200


class TestTools:
    async def test_are_called_and_their_results_are_heard(self) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            first = asked("Weather?", 100, tools=[WEATHER])
            message = (await whole(yard, CHAT, first))["message"]
            assert [call["function"]["arguments"] for call in message["tool_calls"]] == [
                {"city": "Paris", "days": 3},
                {},
            ]
            first["messages"] += [message, {"role": "tool", "tool_name": "weather", "content": "sun"}]
            heard = [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": ""},
                {"role": "tool", "content": "sun"},
            ]
            found = await lines(yard, CHAT, {**first, "options": {"num_predict": 5}})
            assert said(found) == expected_text("a", chat_prompt(heard), 5)

    async def test_are_streamed_whole(self) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            *found, end = await lines(yard, CHAT, asked("Weather?", 100, tools=[WEATHER]))
            calls = [line["message"]["tool_calls"] for line in found]
            assert [[call["function"]["arguments"] for call in one] for one in calls] == [
                [{"city": "Paris", "days": 3}],
                [{}],
            ]
            assert [one[0]["function"]["index"] for one in calls] == [0, 1]
            assert (end["done"], end["done_reason"], "tool_calls" in end["message"]) == (True, "stop", False)

    @pytest.mark.parametrize("tokens", [1, 3])
    async def test_that_num_predict_cuts_are_no_calls(self, tokens: int) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS})}) as yard:
            body = asked("Weather?", tokens, tools=[WEATHER])
            (end,) = await lines(yard, CHAT, body)
            assert (end["done_reason"], end["message"]) == ("length", {"role": "assistant", "content": ""})
            assert "tool_calls" not in (await whole(yard, CHAT, body))["message"]

    @pytest.mark.parametrize("order", ["crash_after_tokens", "crash_mid_event"])
    async def test_that_a_death_cuts_are_an_error(self, order: str) -> None:
        async with live_yard({"a": fake(parameters={"tool_calls": CALLS, order: 4})}) as yard:
            found = await lines(yard, CHAT, asked("Weather?", 100, tools=[WEATHER]))
            assert [set(line) for line in found] == [{"error"}]
            assert "a-1" in found[0]["error"]

    async def test_that_were_whole_are_sent_before_the_error(self) -> None:
        """Also one that could be whole, when nobody says that it is."""
        first, second = (
            {"index": index, "function": {"name": "weather", "arguments": "{}"}} for index in range(2)
        )
        deltas = [{"tool_calls": [call]} for call in (first, second)]
        events = [json.dumps({"choices": [{"delta": delta}]}).encode() for delta in deltas]
        body = b"".join(b"data: " + event + b"\n\n" for event in events)
        async with answered_with(sse_answer(body)) as yard:
            call, error = await lines(yard, CHAT, asked())
            assert [one["function"]["index"] for one in call["message"]["tool_calls"]] == [0]
            assert "before its answer was whole" in error["error"]
        async with answered_with(sse_answer(body + DONE)) as yard:  # it all came at once: nothing was out
            assert refusal(await yard.post(CHAT, asked()))[0] == 502

    async def test_without_an_object_are_an_error(self) -> None:
        function = {"name": "weather", "arguments": '{"city": '}
        calls = {"tool_calls": [{"index": 0, "id": "c", "function": function}]}
        choice = {"delta": calls, "message": calls, "finish_reason": "tool_calls"}
        body = json.dumps({"choices": [choice]}).encode()
        async with answered_with(sse_answer(b"data: " + body + b"\n\n" + DONE)) as yard:
            (line,) = await lines(yard, CHAT, asked())
            assert "which is no JSON object" in line["error"]
        async with answered_with(json_answer(body)) as yard:
            status, message = refusal(await yard.post(CHAT, asked(stream=False)))
            assert (status, "which is no JSON object" in message) == (502, True)


class TestThinking:
    async def test_is_told_apart_or_left_out(self) -> None:
        async with live_yard({"a": fake(parameters={"thinking_tokens": 3})}) as yard:
            body = asked(tokens=7)
            for more in ({}, {"think": True}, {"think": "high"}):
                found = await lines(yard, CHAT, {**body, **more})
                assert len(said(found, "thinking").split()) == 3
                assert said(found) == right_text("a", "hi", 4)
                message = (await whole(yard, CHAT, {**body, **more}))["message"]
                assert message["thinking"] == said(found, "thinking")
            found = await lines(yard, CHAT, {**body, "think": False})
            assert (said(found), said(found, "thinking")) == (right_text("a", "hi", 7), "")


class TestAGeneration:
    async def test_is_a_chat_of_one_message(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            body = {"model": "a", "prompt": "hi", "system": "Be brief.", "options": {"num_predict": 3}}
            talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
            right = expected_text("a", chat_prompt(talk), 3)
            found = await lines(yard, GENERATE, body)
            assert "".join(line["response"] for line in found) == right
            assert (await whole(yard, GENERATE, body))["response"] == right
            assert (found[-1]["done"], found[-1]["eval_count"]) == (True, 3)

    async def test_can_be_raw(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            body = {"model": "a", "prompt": "Once", "raw": True, "options": {"num_predict": 3}}
            found = await lines(yard, GENERATE, body)
            assert "".join(line["response"] for line in found) == expected_text("a", "Once", 3)
            assert (await whole(yard, GENERATE, body))["response"] == expected_text("a", "Once", 3)

    async def test_of_a_stream_without_a_reason_is_an_error(self) -> None:
        body = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
        async with answered_with(sse_answer(body)) as yard:
            found = await lines(yard, GENERATE, {"model": "a", "prompt": "hi"})
            assert found[0]["response"] == "x"
            assert "before its answer was whole" in found[1]["error"]
        async with answered_with(sse_answer(body + b'data: {"error":{"message":"full"}}\n\n')) as yard:
            found = await lines(yard, GENERATE, {"model": "a", "prompt": "hi"})
            assert found[1] == {"error": "full"}

    async def test_tells_the_durations_that_the_engine_tells(self) -> None:
        timings = {"prompt_ms": 1.5, "predicted_ms": 20}
        choice = {"message": {"content": "x"}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "timings": timings}).encode()
        async with answered_with(json_answer(body)) as yard:
            found = await whole(yard, GENERATE, {"model": "a", "prompt": "hi"})
            assert (found["prompt_eval_duration"], found["eval_duration"]) == (1_500_000, 20_000_000)
            assert found["done_reason"] == "stop"


class TestEmbeddings:
    async def test_of_one_and_of_many(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            found = (await yard.post(EMBED, {"model": "a", "input": ["one", "two"], "truncate": True})).body
            assert found["embeddings"] == [embedding("a", "one"), embedding("a", "two")]
            assert (found["model"], found["prompt_eval_count"]) == ("a", 2)
            assert (await yard.post(EMBED, {"model": "a", "input": "one"})).body["embeddings"] == [
                embedding("a", "one")
            ]
            older = await yard.post("/api/embeddings", {"model": "a", "prompt": "one"})
            assert older.body == {"embedding": embedding("a", "one")}

    async def test_are_shortened_to_length_one(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            body = {"model": "a", "input": "one", "dimensions": 3}
            (vector,) = (await yard.post(EMBED, body)).body["embeddings"]
            assert sum(number * number for number in vector) == pytest.approx(1.0)
            full = embedding("a", "one")
            assert vector[0] / vector[1] == pytest.approx(full[0] / full[1])
            assert len(vector) == 3

    async def test_are_refused_where_the_engine_has_none(self) -> None:
        async with live_yard({"a": fake(parameters={"apis": ["chat"]})}) as yard:
            assert refusal(await yard.post(EMBED, {"model": "a", "input": "one"}))[0] == 501
            assert yard.state.sequence == 0


class TestKeepAlive:
    async def test_of_nothing_lets_the_model_go_after_the_answer(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            await lines(yard, CHAT, asked(keep_alive=0))
            await until(lambda: not yard.instances("a"))
            await lines(yard, CHAT, asked())
            assert yard.ready("a"), "the next instance has the policy's keep-alive again"

    async def test_below_zero_keeps_it_for_ever(self) -> None:
        async with live_yard({"a": fake(keep_alive="50ms")}) as yard:
            await whole(yard, GENERATE, {"model": "a", "prompt": "hi", "keep_alive": -1})
            instance = yard.ready("a")
            assert instance is not None
            assert instance.keep_alive == inf
            (running,) = (await yard.http.get("/api/ps")).json()["models"]
            assert running["expires_at"] > "2100"
            await yard.post(EMBED, {"model": "a", "input": "x", "keep_alive": "20ms"})
            await until(lambda: not yard.instances("a"))

    async def test_of_a_refused_request_counts_for_nothing(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            instance = await yard.load("a")
            assert refusal(await yard.post(CHAT, asked(odd=1, keep_alive=0)))[0] == 400
            assert instance.asked_keep_alive is None
            assert yard.ready("a") is instance

    async def test_waits_for_what_still_runs(self) -> None:
        async with live_yard({"a": fake(parameters={"tokens_per_second": 50.0}, slots=2)}) as yard:
            await yard.load("a")
            slow = asyncio.create_task(lines(yard, CHAT, asked(tokens=20)))
            await until(lambda: yard.leases() == 1)
            await whole(yard, CHAT, asked(tokens=1, keep_alive=0))
            assert said(await slow) == right_text("a", "hi", 20)
            await until(lambda: not yard.instances("a"))

    async def test_alone_loads_and_unloads(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            (found,) = await lines(yard, GENERATE, {"model": "a", "keep_alive": "5m"})
            assert (found["response"], found["done"], found["done_reason"]) == ("", True, "load")
            instance = yard.ready("a")
            assert instance is not None
            assert instance.keep_alive == 300.0
            found = await whole(yard, CHAT, {"model": "a", "messages": [], "keep_alive": 0})
            assert (found["message"]["content"], found["done_reason"]) == ("", "unload")
            await until(lambda: not yard.instances("a"))
            assert (await whole(yard, CHAT, {"model": "b", "keep_alive": 0}))["done_reason"] == "unload"
            assert yard.state.sequence == 1, "who lets go of a model does not load it"

    @pytest.mark.parametrize(
        ("path", "more", "field"),
        [
            (CHAT, {"odd": 1}, "odd"),
            (CHAT, {"options": {"num_ctx": 99_999_999}}, "options.num_ctx"),
            (CHAT, {"tools": [{"type": "weather"}]}, "tools[0].type"),
            (GENERATE, {"template": "x", "keep_alive": 0}, "template"),
            (GENERATE, {"think": "weird"}, "think"),
            (GENERATE, {"format": "xml"}, "format"),
        ],
    )
    async def test_alone_is_refused_what_it_would_be_with_messages(
        self, path: str, more: dict[str, Any], field: str
    ) -> None:
        async with live_yard({"a": fake(parameters={"context": 1024})}) as yard:
            status, message = refusal(await yard.post(path, {"model": "a", **more}))
            assert (status, message.startswith(f"`{field}` ")) == (400, True), message
            assert yard.state.sequence == 0

    async def test_alone_with_what_changes_nothing_loads(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            more = {"system": "Be brief.", "raw": True, "template": "", "options": {"num_gpu": 1}}
            assert (await whole(yard, GENERATE, {"model": "a", **more}))["done_reason"] == "load"
            assert (await whole(yard, CHAT, {"model": "a", "tools": [WEATHER]}))["done_reason"] == "load"

    @pytest.mark.parametrize("value", ["soon", [], True, "5m-"])
    async def test_that_is_none_is_named(self, value: Any) -> None:
        async with live_yard({"a": fake()}) as yard:
            status, message = refusal(await yard.post(CHAT, asked(keep_alive=value)))
            assert (status, message.startswith("`keep_alive` ")) == (400, True)
            assert yard.state.sequence == 0


class TestLists:
    async def test_of_models(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}) as yard:
            models = (await yard.http.get("/api/tags")).json()["models"]
            assert [(model["name"], model["model"]) for model in models] == [("a", "a"), ("b", "b")]
            assert models[0]["details"]["family"] == "fake"
            assert (await yard.http.get("/api/ps")).json() == {"models": []}
            await yard.load("b")
            (running,) = (await yard.http.get("/api/ps")).json()["models"]
            assert (running["name"], running["size"], running["size_vram"]) == ("b", 4_000_000, 4_000_000)
            for path in ("/", "/api/version"):
                assert (await yard.http.head(path)).status_code == 200, "Ollama's command line asks so"
            version = (await yard.http.get("/api/version")).json()["version"]
            assert [int(part) for part in version.split(".")] >= [0, 6, 4]

    async def test_of_one_model(self) -> None:
        model = fake(parameters={"context": 64}, capabilities=["vision"])
        async with live_yard({"a": model, "e": fake(parameters={"apis": ["embeddings"]})}) as yard:
            for body in ({"model": "a:latest"}, {"name": "a"}):
                one = (await yard.post("/api/show", body)).body
                assert one["capabilities"] == ["completion", "embedding", "tools", "vision"]
                assert one["model_info"]["fake.context_length"] == 64
            assert (await yard.post("/api/show", {"model": "e"})).body["capabilities"] == ["embedding"]
            assert refusal(await yard.post("/api/show", {"model": "x"}))[0] == 404


class TestPulls:
    async def test_of_what_is_there_succeed(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            found = await lines(yard, "/api/pull", {"model": "a", "insecure": True})
            assert [line["status"] for line in found] == ["pulling manifest", "success"]
            assert (await whole(yard, "/api/pull", {"name": "a:latest"})) == {"status": "success"}
            assert refusal(await yard.post("/api/pull", {"model": "llama3.2"}))[0] == 404

    async def test_tell_how_far_they_are_and_how_they_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            entry = yard.yard.names.resolve("a")
            files, entry.files = entry.files, None
            ends: list[Exception | None] = [None, DownloadFailed("the line is cut")]

            async def fetch(wanted: Any, progress: Any) -> Any:
                for done in (0, 40, 100):
                    progress(Progress(wanted.spec.version, done, 100))
                if (error := ends.pop(0)) is not None:
                    raise error
                return files

            monkeypatch.setattr(yard.driver.files, "fetch", fetch)
            found = await lines(yard, "/api/pull", {"model": "a"})
            assert [(line.get("completed"), line.get("total")) for line in found[1:-1]] == [
                (0, 100),
                (100, 100),
            ]
            assert found[-1] == {"status": "success"}
            entry.files = None
            found = await lines(yard, "/api/pull", {"model": "a"})
            assert found[-1] == {"error": "the line is cut"}
            entry.files = files


class TestDepartures:
    """A client that leaves ends what it waits for."""

    async def test_end_a_pull(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            entry = yard.yard.names.resolve("a")
            files, entry.files = entry.files, None
            ended = asyncio.Event()

            async def fetch(wanted: Any, progress: Any) -> Any:
                progress(Progress(wanted.spec.version, 1, 2))
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

            monkeypatch.setattr(yard.driver.files, "fetch", fetch)
            async with yard.http.stream("POST", "/api/pull", json={"model": "a"}) as response:
                await anext(response.aiter_lines())
                assert not ended.is_set()
            await asyncio.wait_for(ended.wait(), 5.0)
            entry.files = files

    async def test_end_the_wait_for_a_load(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 1.0})}) as yard:
            waiting = asyncio.create_task(yard.post(GENERATE, {"model": "a", "keep_alive": "1h"}))
            await until(lambda: yard.instances("a"))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await until(lambda: yard.ready("a"))
            instance = yard.ready("a")
            assert instance is not None
            assert instance.asked_keep_alive is None


class TestErrors:
    async def test_have_ollamas_shape(self) -> None:
        async with live_yard({"a": fake(), "b": fake()}, server={"limits": {"body": "1KiB"}}) as yard:
            cases: list[tuple[str, Any, int]] = [
                (CHAT, asked(model="nobody"), 404),
                (CHAT, {}, 400),
                (CHAT, asked(stream="yes"), 400),
                (CHAT, asked("x" * 2000), 413),
                (CHAT, asked(odd=1), 400),
                ("/api/create", {"model": "x"}, 404),
            ]
            for path, body, status in cases:
                assert refusal(await yard.post(path, body))[0] == status, body
            response = await yard.http.get(CHAT)
            assert refusal(Answer(response.status_code, {}, response.json()))[0] == 405
            assert yard.state.sequence == 0
        async with live_yard({"a": fake()}, keys=KEYS) as yard:
            assert refusal(await yard.post(CHAT, asked()))[0] == 401
            assert refusal(await yard.post(CHAT, asked(), authorization=f"Bearer {'o' * 20}"))[0] == 403

    async def test_of_the_engine_are_translated(self) -> None:
        async with live_yard({"a": fake(parameters={"context": 8})}) as yard:
            status, message = refusal(await yard.post(CHAT, asked("one two three four five six seven eight")))
            assert (status, "context" in message) == (400, True)

    async def test_end_a_stream_that_waited(self) -> None:
        parameters = {"load_time": 0.4, "exit_code": 1, "exit_log": "error: failed to load model: torn"}
        settings = {"server": {"heartbeat_after": "50ms"}}
        async with live_yard({"a": fake(parameters=parameters)}, **settings) as yard:
            response = await yard.http.post(CHAT, json=asked())
            assert (response.status_code, response.text[0]) == (200, " ")
            assert "torn" in json.loads(response.text)["error"]
        async with live_yard({"a": fake(parameters={"load_time": 0.4})}, **settings) as yard:
            assert said(await lines(yard, CHAT, asked())) == right_text("a", "hi", 4)
