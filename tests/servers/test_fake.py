"""The fake engine does exactly what its script says, as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
import pytest

from modelyard.servers.fake import chat_prompt, expected_text
from modelyard.servers.fake_memory import used
from servers.live import Live, fake
from waiting import until

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def stream(live: Live, path: str, body: Mapping[str, object]) -> tuple[list[str], bool]:
    """The events of a stream, and whether it was whole."""
    received = b""
    try:
        async with live.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            async for chunk in answer.aiter_raw():
                received += chunk
    except httpx.RemoteProtocolError:
        return received.decode().split("\n\n"), False
    events = received.decode().split("\n\n")
    assert events.pop() == ""
    return events, True


async def busy(live: Live) -> int:
    return sum(slot["is_processing"] for slot in (await live.client.get("/slots")).json())


async def test_a_chat_is_the_expected_text() -> None:
    async with fake(model="m") as live:
        await live.healthy()
        answer = (await live.client.post(CHAT, json={"messages": messages("hi"), "max_tokens": 7})).json()
    text = expected_text("m", chat_prompt(messages("hi")), 7)
    assert answer["choices"][0]["message"]["content"] == text
    assert len(text.split()) == 7
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}
    assert answer["model"] == "m"


async def test_a_stream_has_the_same_text_then_usage_then_done() -> None:
    async with fake("--default-tokens", "5") as live:
        await live.healthy()
        body = {"messages": messages("hi"), "stream_options": {"include_usage": True}}
        events, whole = await stream(live, CHAT, body)
    assert whole
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == expected_text("m", chat_prompt(messages("hi")), 5)


async def test_a_chat_that_offers_tools_is_answered_with_the_scripted_calls() -> None:
    calls = [
        {"name": "look", "arguments": {"at": "the sea", "from": [1, 2]}},
        {"name": "go", "arguments": {}},
    ]
    async with fake("--tool-calls", json.dumps(calls), "--thinking-tokens", "2") as live:
        await live.healthy()
        body = {"messages": messages("hi"), "tools": [{"type": "function"}]}
        (choice,) = (await live.client.post(CHAT, json=body)).json()["choices"]
        made = [call["function"] for call in choice["message"]["tool_calls"]]
        assert [(call["name"], json.loads(call["arguments"])) for call in made] == [
            (call["name"], call["arguments"]) for call in calls
        ]
        assert choice["finish_reason"] == "tool_calls"
        assert len(choice["message"]["reasoning_content"].split()) == 2
        events, whole = await stream(live, CHAT, body)
        assert whole
        chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-1]]
        pieces = [piece for chunk in chunks for piece in chunk["delta"].get("tool_calls", ())]
        for index, call in enumerate(calls):
            text = "".join(one["function"]["arguments"] for one in pieces if one["index"] == index)
            assert json.loads(text) == call["arguments"]
        assert chunks[-1]["finish_reason"] == "tool_calls"
        (cut,) = (await live.client.post(CHAT, json={**body, "max_tokens": 4})).json()["choices"]
        assert cut["finish_reason"] == "length"
        heard = [*messages("hi"), {"role": "tool", "content": "sun"}]
        words = {"chat_template_kwargs": {"enable_thinking": False}}
        ends: list[dict[str, object]] = [{"messages": heard}, {"tools": []}, {"tool_choice": "none"}]
        for more in ends:
            (choice,) = (await live.client.post(CHAT, json={**body, **words, **more})).json()["choices"]
            assert set(choice["message"]) == {"role", "content"}
            assert choice["message"]["content"]


async def test_loading_is_told_from_loaded() -> None:
    async with fake("--load-time", "60") as live:

        async def listening() -> bool:
            try:
                return (await live.client.get("/health")).status_code == 503
            except httpx.TransportError:
                return False

        await until(listening)
        answer = await live.client.post(TEXT, json={"prompt": "hi"})
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "Loading model"
        live.process.terminate()
        assert await live.exited() == 0


async def test_a_prompt_over_the_context_is_refused_as_llama_cpp_does() -> None:
    async with fake("--context", "8") as live:
        await live.healthy()
        answer = await live.client.post(TEXT, json={"prompt": "x" * 40})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == (
            "exceed_context_size_error",
            10,
            8,
        )
        cut = (await live.client.post(TEXT, json={"prompt": "x" * 16})).json()
    assert cut["usage"]["completion_tokens"] == 4
    assert cut["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CHAT, b"{", 400, "not JSON"),
        (CHAT, b"[]", 400, "must be an object"),
        (CHAT, b"{}", 400, '"messages" must be'),
        (TEXT, b'{"prompt": 1}', 400, '"prompt" must be'),
        (TEXT, b'{"prompt": "a", "fake": {"tokens": "x"}}', 400, "tokens: must be a whole number"),
        (TEXT, b'{"prompt": "a", "fake": {"nonsense": 1}}', 400, "nonsense: is not an option"),
        ("/v1/rerank", b'{"query": "a"}', 400, '"documents" must be'),
        ("/detokenize", b'{"tokens": [1]}', 400, "not tokens of this model"),
        ("/nowhere", b"{}", 404, "File Not Found"),
        ("/v1/embeddings", b"{}", 501, "does not support embeddings"),
    ],
)
async def test_bad_requests(path: str, body: bytes, status: int, said: str) -> None:
    async with fake("--apis", "chat,completions,rerank,tokenize") as live:
        await live.healthy()
        answer = await live.client.post(path, content=body)
        assert answer.status_code == status
        assert said in answer.json()["error"]["message"]
        assert await busy(live) == 0


async def test_embeddings_rerank_and_tokens() -> None:
    async with fake() as live:
        await live.healthy()
        vectors = (await live.client.post("/v1/embeddings", json={"input": ["a", "b", "a"]})).json()["data"]
        assert vectors[0]["embedding"] == vectors[2]["embedding"] != vectors[1]["embedding"]
        ranked = await live.client.post("/v1/rerank", json={"query": "q", "documents": ["a", "b", "c"]})
        scores = [result["relevance_score"] for result in ranked.json()["results"]]
        assert scores == sorted(scores, reverse=True)
        tokens = (await live.client.post("/tokenize", json={"content": "grün und \0 null"})).json()
        text = (await live.client.post("/detokenize", json=tokens)).json()["content"]
    assert text == "grün und \0 null"


async def test_more_requests_than_slots_wait_inside() -> None:
    async with fake("--slots", "2", "--tokens-per-second", "100") as live:
        await live.healthy()
        body = {"prompt": "a", "max_tokens": 10_000}
        tasks = [asyncio.create_task(live.client.post(TEXT, json=body)) for _ in range(5)]

        async def full() -> bool:
            text = (await live.client.get("/metrics")).text
            return "llamacpp:requests_processing 2\n" in text and "llamacpp:requests_deferred 3\n" in text

        await until(full)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        async def empty() -> bool:
            text = (await live.client.get("/metrics")).text
            return "llamacpp:requests_processing 0\n" in text and "llamacpp:requests_deferred 0\n" in text

        await until(empty)


@pytest.mark.parametrize("order", [{"crash_after_tokens": 3}, {"crash_mid_event": 3}])
async def test_a_crash_in_the_stream(order: dict[str, int]) -> None:
    async with fake() as live:
        await live.healthy()
        events, whole = await stream(live, TEXT, {"prompt": "a", "fake": order})
        assert not whole
        assert await live.exited() == 134
    complete = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["text"] for chunk in complete)
    assert text == expected_text("m", "a", 3 if "crash_after_tokens" in order else 2)
    half = events[-1]
    assert (half == "") == ("crash_after_tokens" in order)


async def test_a_hang_keeps_its_slot_after_the_client_left() -> None:
    async with fake("--slots", "2") as live:
        await live.healthy()
        async with live.client.stream(
            "POST", TEXT, json={"prompt": "a", "stream": True, "fake": {"hang_after_tokens": 2}}
        ) as answer:
            received = b""
            async for chunk in answer.aiter_raw():
                received += chunk
                if received.count(b"\n\n") == 2:
                    break
        other = await live.client.post(TEXT, json={"prompt": "b", "max_tokens": 1})
        assert other.status_code == 200
        assert await busy(live) == 1


async def test_requests_hang_while_health_answers() -> None:
    async with fake("--hang-from-request", "2") as live:
        await live.healthy()
        assert (await live.client.post(TEXT, json={"prompt": "a"})).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await live.client.post(TEXT, json={"prompt": "a"}, timeout=0.3)
        assert (await live.client.get("/health")).status_code == 200


async def test_ordered_status_and_seeded_failures() -> None:
    async with fake("--fail-rate", "0.5", "--seed", "7") as live:
        await live.healthy()
        answer = await live.client.post(TEXT, json={"prompt": "a", "fake": {"status": 418}})
        assert answer.status_code == 418
        first = [(await live.client.post(TEXT, json={"prompt": "a"})).status_code for _ in range(20)]
    async with fake("--fail-rate", "0.5", "--seed", "7") as live:
        await live.healthy()
        await live.client.post(TEXT, json={"prompt": "a", "fake": {"status": 418}})
        second = [(await live.client.post(TEXT, json={"prompt": "a"})).status_code for _ in range(20)]
    assert first == second
    assert set(first) == {200, 500}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--oom-at-load",), 1, "out of memory"),
        (("--exit-code", "3", "--exit-log", "no such quantization"), 3, "no such quantization"),
        (("--memory", "gpu0=1000"), 2, "device gpu0: there is no pool folder"),
        (("--slots", "0"), 2, "slots: must be 1 or more"),
        (("--fail-rate", "2"), 2, "fail_rate: must be between 0 and 1"),
        (("--script", '{"load_time": "x"}'), 2, "load_time: must be a number"),
        (("--memory", "ram=lots"), 2, "'ram=lots' is not DEVICE=BYTES"),
    ],
)
async def test_failures_at_load(options: tuple[str, ...], code: int, said: str) -> None:
    async with fake(*options) as live:
        assert await live.exited() == code
        assert said in live.log


async def test_a_listened_on_address_is_in_use() -> None:
    async with fake("--address", "127.0.0.1:0") as first:
        await until(lambda: "model loaded" in first.log)
        port = psutil.Process(first.process.pid).net_connections()[0].laddr.port
        async with fake("--address", f"127.0.0.1:{port}") as second:
            assert await second.exited() == 1
            assert "couldn't bind" in second.log


async def test_memory_is_really_taken(tmp_path: Path) -> None:
    pool = tmp_path / "gpu0"
    pool.mkdir()
    (pool / "size").write_text("5000000")
    environment = {"MODELYARD_POOLS": str(tmp_path)}
    options = ("--memory", "ram=50000000", "--memory", "gpu0=3000000")
    async with fake(*options, environment=environment) as live:
        await live.healthy()
        status = Path(f"/proc/{live.process.pid}/status").read_text()
        anonymous = int(status.split("RssAnon:")[1].split()[0]) * 1024
        assert 50_000_000 < anonymous < 80_000_000
        (held,) = pool.glob("*.mem")
        assert held.stat().st_blocks * 512 >= 3_000_000
        assert used(pool) == 3_000_000
        async with fake(*options, environment=environment) as second:
            assert await second.exited() == 1
            assert "out of memory (gpu0: 3000000 bytes asked for, 2000000 of 5000000 free)" in second.log
        assert list(pool.glob("*.mem")) == [held]
        live.process.kill()
        await live.exited()
        assert used(pool) == 0
        async with fake(*options, environment=environment) as third:
            await third.healthy()
            third.process.terminate()
            assert await third.exited() == 0
        assert list(pool.glob("*.mem")) == [held]


async def test_sigterm_is_ignored_on_order_and_a_grandchild_stays() -> None:
    async with fake("--ignore-sigterm", "--fork-grandchild") as live:
        await live.healthy()
        (grandchild,) = psutil.Process(live.process.pid).children()
        try:
            assert os.getsid(grandchild.pid) == grandchild.pid
            live.process.terminate()
            assert (await live.client.get("/health")).status_code == 200
            live.process.kill()
            assert await live.exited() == -signal.SIGKILL
            assert grandchild.is_running()
        finally:
            grandchild.kill()


async def test_a_flood_fills_a_pipe_that_nobody_reads() -> None:
    argv = [sys.executable, "-m", "modelyard.servers.fake", "--address", "127.0.0.1:0", "--model", "m"]
    flooding = subprocess.Popen([*argv, "--flood-output", "3000000"], stdout=-1, stderr=-1)
    assert flooding.stdout is not None
    assert flooding.stderr is not None
    with flooding, flooding.stdout as output, flooding.stderr as log:
        try:
            await asyncio.to_thread(log.readline)
            data = await asyncio.to_thread(output.read, 3_000_000)
            assert len(data) == 3_000_000
            assert b"\n" not in data
            assert await asyncio.to_thread(log.readline) == b"model loaded\n"
        finally:
            flooding.kill()


async def test_pipelined_requests_and_the_bound_of_a_kept_connection(tmp_path: Path) -> None:
    async with fake("--keep-alive-requests", "2", "--address", "127.0.0.1:0") as live:
        await until(lambda: "model loaded" in live.log)
        port = psutil.Process(live.process.pid).net_connections()[0].laddr.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(-1), 10)
        writer.close()
    first, second = answers.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    assert b"Connection: keep-alive" in first
    assert second.startswith(b"404 ")
    assert b"Connection: close" in second


@pytest.mark.parametrize(
    ("option", "healthy_requests"),
    [("--health-ok-but-requests-hang", 0), ("--hang-on-request=2", 1)],
)
async def test_which_requests_hang(option: str, healthy_requests: int) -> None:
    async with fake(option, "--slots", "4") as live:
        await live.healthy()
        for _ in range(healthy_requests):
            assert (await live.client.post(TEXT, json={"prompt": "a"})).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await live.client.post(TEXT, json={"prompt": "a"}, timeout=0.3)
        if option == "--hang-on-request=2":
            assert (await live.client.post(TEXT, json={"prompt": "a"})).status_code == 200
        assert (await live.client.get("/health")).status_code == 200


async def test_a_health_check_that_is_slower_than_its_deadline() -> None:
    async with fake("--slow-health", "60") as live:
        await until(lambda: "model loaded" in live.log)
        with pytest.raises(httpx.ReadTimeout):
            await live.client.get("/health", timeout=0.3)
        assert (await live.client.post(TEXT, json={"prompt": "a"})).status_code == 200


async def test_a_random_crash_ends_the_process() -> None:
    async with fake("--crash-rate", "1") as live:
        await live.healthy()
        with pytest.raises(httpx.RemoteProtocolError):
            await live.client.post(TEXT, json={"prompt": "a"})
        assert await live.exited() == 134


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"this is not http\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"400"),
        (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"400"),
    ],
)
async def test_what_is_not_http_is_refused_and_closed(request_bytes: bytes, status: bytes) -> None:
    async with fake("--address", "127.0.0.1:0") as live:
        await until(lambda: "model loaded" in live.log)
        port = psutil.Process(live.process.pid).net_connections()[0].laddr.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        answer = await asyncio.wait_for(reader.read(-1), 10)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close" in answer
