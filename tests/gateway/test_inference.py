"""What a client gets of a request that is in order: names, headers, the short form, and the pages beside."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from prometheus_client.parser import text_string_to_metric_families

from gateway.live_yard import LiveYard, body_of, fake, live_yard, right_text
from modelyard.servers.fake_text import expected_text

CHAT = "/v1/chat/completions"
NAMES = ("org/model", "model:latest", "registry.lan/org/model:7b-q4_0", "a+b", "v1.5")


async def metrics_of(yard: LiveYard) -> dict[tuple[str, tuple[str, ...]], float]:
    """The page as Prometheus reads it: the value by name and label values, in the order of their names."""
    response = await yard.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(response.text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def version_of(yard: LiveYard, model: str) -> str:
    (version,) = (v for v in yard.state.versions.values() if v.spec.model == model)
    return version.key


class TestNames:
    async def test_may_hold_slashes_colons_and_more(self) -> None:
        async with live_yard({name: fake(memory=1_000_000) for name in NAMES}) as yard:
            for name in NAMES:
                assert (await yard.chat(name)).text == right_text(name, "hi", 4)
                one = (await yard.http.get(f"/v1/models/{name}")).json()
                assert (one["id"], one["object"], one["owned_by"]) == (name, "model", "modelyard")
                escaped = name.replace("/", "%2F").replace(":", "%3A").replace("+", "%2B")
                assert (await yard.http.get(f"/v1/models/{escaped}")).json() == one
            listed = (await yard.http.get("/v1/models")).json()
            assert listed["object"] == "list"
            assert [model["id"] for model in listed["data"]] == sorted(NAMES)

    async def test_an_alias_leads_to_its_model(self) -> None:
        async with live_yard({"a": fake(aliases=["gpt-4o", "org/a:latest"]), "b": fake()}) as yard:
            for name in ("gpt-4o", "org/a:latest"):
                answer = await yard.chat(name)
                assert answer.text == right_text("a", "hi", 4)
                assert answer.headers["x-modelyard-version"] == version_of(yard, "a")
                one = (await yard.http.get(f"/v1/models/{name}")).json()
                assert (one["id"], one["modelyard"]["aliases"]) == ("a", ["gpt-4o", "org/a:latest"])
            assert len(yard.instances("a")) == 1

    async def test_a_digest_names_one_version(self) -> None:
        async with live_yard({"org/a:1": fake(aliases=["a"]), "b": fake(slots=2)}) as yard:
            version = version_of(yard, "org/a:1")
            digest = version.rpartition("@")[2]
            for name in (f"org/a:1@{digest}", f"org/a:1@{digest[:6]}", f"a@{digest}", version):
                answer = await yard.chat(name)
                assert answer.status == 200, name
                assert answer.headers["x-modelyard-version"] == version
                assert (await yard.http.get(f"/v1/models/{name}")).json()["id"] == "org/a:1"
            other = version_of(yard, "b").rpartition("@")[2]
            refused = await yard.chat(f"a@{other}")
            assert (refused.status, refused.code) == (404, "model_not_found")

    async def test_a_model_that_there_is_not(self) -> None:
        async with live_yard({"smol": fake()}) as yard:
            response = await yard.http.get("/v1/models/smoll")
            assert response.status_code == 404
            error = response.json()["error"]
            assert error["code"] == "model_not_found"
            assert error["message"] == "There is no model 'smoll'. Did you mean 'smol'?"


class TestAnswers:
    async def test_say_who_gave_them_and_how_long_it_took(self) -> None:
        async with live_yard({"a": fake(parameters={"load_time": 0.2})}) as yard:
            cold, warm, stream = await yard.chat("a"), await yard.chat("a"), await yard.stream("a")
            for answer in (cold, warm, stream):
                assert answer.headers["x-modelyard-version"] == version_of(yard, "a")
                assert answer.headers["x-modelyard-instance"] == "a-1"
            assert int(cold.headers["x-modelyard-load-ms"]) >= 200
            assert int(cold.headers["x-modelyard-queue-ms"]) >= int(cold.headers["x-modelyard-load-ms"])
            for answer in (warm, stream):
                assert answer.headers["x-modelyard-load-ms"] == "0"
                assert int(answer.headers["x-modelyard-queue-ms"]) < 200

    async def test_come_from_every_endpoint_of_the_engine(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            words = "one two three"
            embedded = await yard.post("/v1/embeddings", {"model": "a", "input": [words, "four"]})
            assert [item["index"] for item in embedded.body["data"]] == [0, 1]
            ranked = await yard.post("/v1/rerank", {"model": "a", "query": "one", "documents": ["x", "one"]})
            assert {result["index"] for result in ranked.body["results"]} == {0, 1}
            tokens = (await yard.post("/tokenize", {"model": "a", "content": words})).body["tokens"]
            text = (await yard.post("/detokenize", {"model": "a", "tokens": tokens})).body["content"]
            assert text == words
            completed = await yard.post("/v1/completions", {"model": "a", "prompt": "hi", "max_tokens": 3})
            assert completed.body["choices"][0]["text"] == expected_text("a", "hi", 3)

    async def test_of_a_body_that_is_chunked_or_untyped_are_the_same(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            content = json.dumps(body_of("a", "hi", 4, False, {})).encode()

            async def pieces() -> AsyncIterator[bytes]:
                for at in range(0, len(content), 7):
                    yield content[at : at + 7]

            form = {"content-type": "application/x-www-form-urlencoded"}  # what `curl -d` says
            for response in (
                await yard.http.post(CHAT, content=pieces()),
                await yard.http.post(CHAT, content=content),
                await yard.http.post(CHAT, content=content, headers=form),
                await yard.http.post(f"{CHAT}?api-version=1", content=content),
            ):
                assert response.json()["choices"][0]["message"]["content"] == right_text("a", "hi", 4)


class TestGenerate:
    async def test_answers_with_text_usage_and_model(self) -> None:
        async with live_yard({"a": fake(aliases=["x"])}) as yard:
            answer = await yard.post("/generate", {"model": "x", "prompt": "hi", "max_tokens": 5})
            assert answer.status == 200
            assert set(answer.body) == {"text", "usage", "model"}
            assert answer.body["text"] == expected_text("a", "hi", 5)
            assert answer.body["model"] == "a"
            assert answer.body["usage"]["completion_tokens"] == 5
            assert answer.headers["x-modelyard-instance"] == "a-1"
            alone = await yard.post("/generate", {"prompt": "hi", "max_tokens": 2})
            assert alone.body["text"] == expected_text("a", "hi", 2)

    async def test_streams_the_same_fields(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            order = {"model": "a", "prompt": "hi", "max_tokens": 5, "stream": True}
            response = await yard.http.post("/generate", json=order)
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-modelyard-instance"] == "a-1"
            *events, done, rest = response.text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            objects = [json.loads(event.removeprefix("data: ")) for event in events]
            assert all(set(item) <= {"text", "model", "usage"} for item in objects)
            assert "".join(item["text"] for item in objects) == expected_text("a", "hi", 5)
            assert [item["usage"]["completion_tokens"] for item in objects if "usage" in item] == [5]

    async def test_refuses_what_is_of_a_wrong_type(self) -> None:
        wrong: list[tuple[str, object, str]] = [
            ("prompt", None, "`prompt` has to be a string."),
            ("prompt", ["hi"], "`prompt` has to be a string."),
            ("max_tokens", "5", "`max_tokens` has to be a positive integer."),
            ("max_tokens", 0, "`max_tokens` has to be a positive integer."),
            ("max_tokens", 1.5, "`max_tokens` has to be a positive integer."),
            ("max_tokens", True, "`max_tokens` has to be a positive integer."),
            ("load", "no", "`load` has to be true or false."),
            ("stream", 1, "`stream` is a JSON number; send true or false."),
        ]
        async with live_yard({"a": fake()}) as yard:
            for name, value, said in wrong:
                answer = await yard.post("/generate", {"model": "a", "prompt": "hi", name: value})
                assert (answer.status, answer.code) == (400, "invalid_request"), (name, value)
                assert (answer.message, answer.body["error"]["param"]) == (said, name)
            assert yard.state.sequence == 0

    async def test_refuses_fields_that_nobody_would_honour(self) -> None:
        wrong = [("temprature", "`temperature`"), ("streaming", "`stream`"), ("chat_template_kwargs", "")]
        async with live_yard({"a": fake()}) as yard:
            for name, near in wrong:
                answer = await yard.post("/generate", {"model": "a", "prompt": "hi", name: 1})
                assert (answer.status, answer.code) == (400, "invalid_request"), name
                assert answer.message.startswith(f"`{name}` is no field that /generate takes for a.")
                assert near in answer.message
                assert answer.body["error"]["param"] == name
            long = await yard.post("/generate", {"model": "a", "prompt": "hi", "x" * 100_000: 1})
            assert (long.status, len(long.message) < 200) == (400, True)
            assert yard.state.sequence == 0
            more = {"temperature": 0, "top_k": 1, "stop": None, "user": "me", "logprobs": None}
            answer = await yard.post("/generate", {"model": "a", "prompt": "hi", "max_tokens": 2, **more})
            assert answer.body["text"] == expected_text("a", "hi", 2)

    async def test_passes_on_what_the_engine_refuses(self) -> None:
        async with live_yard({"a": fake(parameters={"context": 8})}) as yard:
            answer = await yard.post("/generate", {"model": "a", "prompt": "hi " * 20})
            assert (answer.status, answer.code) == (400, "context_length_exceeded")
            answer = await yard.post("/generate", {"model": "a", "prompt": "hi", "fake": {"nonsense": 1}})
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert "nonsense" in answer.message


class TestPages:
    async def test_health_and_readiness(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            assert (await yard.http.get("/health")).json() == {"status": "ok"}
            ready = await yard.http.get("/ready")
            assert (ready.status_code, ready.json()["ready"]) == (200, True)

    async def test_readiness_says_why_not(self) -> None:
        broken = fake(parameters={"exit_code": 1, "exit_log": "error: failed to load model: torn"})
        async with live_yard({"a": broken}) as yard:
            assert (await yard.http.get("/ready")).status_code == 200, "nobody has tried yet"
            assert (await yard.chat("a")).code == "cannot_load"
            response = await yard.http.get("/ready")
            assert response.status_code == 503
            assert response.json()["ready"] is False
            assert "torn" in response.json()["reason"]
            assert (await yard.http.get("/health")).status_code == 200

    async def test_the_reference_lists_what_there_is(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            page = await yard.http.get("/docs")
            assert page.status_code == 200
            assert "text/html" in page.headers["content-type"]
            described = (await yard.http.get("/openapi.json")).json()
            for path in ("/v1/models", "/health", "/ready", "/metrics", "/admin/status"):
                assert path in described["paths"]

    async def test_metrics_agree_with_what_was_sent(self) -> None:
        async with live_yard({"a": fake(slots=2), "b": fake()}) as yard:
            for _ in range(3):
                await yard.chat("a", tokens=5)
            await yard.stream("a", tokens=7, stream_options={"include_usage": True})
            await yard.post("/v1/embeddings", {"model": "b", "input": "hi"})
            await yard.post("/generate", {"model": "b", "prompt": "hi", "max_tokens": 2})
            await yard.chat("a", fake={"status": 400})
            await yard.chat("b", fake={"nonsense": True})
            await yard.chat("nobody")
            await yard.post("/v1/embeddings", {"input": "hi"})
            await yard.http.post("/generate", content=b"{")
            found = await metrics_of(yard)
            ended = {key[1]: value for key, value in found.items() if key[0] == "modelyard_requests_total"}
            assert ended == {
                ("a", "ok", "chat"): 4,
                ("a", "invalid_request", "chat"): 1,
                ("b", "ok", "embedding"): 1,
                ("b", "ok", "generate"): 1,
                ("b", "invalid_request", "chat"): 1,
                ("", "model_not_found", "chat"): 1,
                ("", "invalid_request", "embedding"): 1,
                ("", "invalid_request", "generate"): 1,
            }
            assert found["modelyard_tokens_total", ("out", "a")] == 3 * 5 + 7
            assert found["modelyard_tokens_total", ("out", "b")] == 2
            assert found["modelyard_leases", ("a",)] == 0
            assert found["modelyard_queued_requests", ("a",)] == 0
            ready = sum(
                v for key, v in found.items() if key[0] == "modelyard_instances" and "ready" in key[1]
            )
            assert ready == 2
            assert not any("nobody" in labels for _, labels in found), "clients make no labels"
