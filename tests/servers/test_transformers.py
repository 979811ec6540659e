"""Our own server over the Transformers library, without the library: what it answers, and when."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from modelyard.servers.transformers.asks import Sampling
from modelyard.servers.transformers.generation import Failed, Job
from servers.made_up_model import Speaker, served
from waiting import until

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def events(answer: httpx.Response) -> list[dict[str, object]]:
    *said, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in said]


async def test_a_chat_is_whole_or_a_stream_of_the_same() -> None:
    async with served(Speaker()) as server:
        whole = (await server.post(CHAT, messages=MESSAGES, max_tokens=7)).json()
        more = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = events(await server.post(CHAT, messages=MESSAGES, max_tokens=7, **more))
    assert whole["choices"][0]["message"]["content"] == "abcabca"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}
    said = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]  # type: ignore[index]
    assert "".join(one["delta"].get("content", "") for one in said) == "abcabca"
    assert said[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"] == whole["usage"]


async def test_the_end_of_a_text_is_no_text() -> None:
    async with served(Speaker("ab\0")) as server:
        answer = (await server.post(TEXT, prompt="p", max_tokens=9)).json()
        on = (await server.post(TEXT, prompt="p", max_tokens=5, ignore_eos=True)).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("ab", "stop")
    assert answer["usage"]["completion_tokens"] == 3
    assert on["choices"][0]["text"] == "ab\0ab"


async def test_a_stop_text_ends_it_and_is_not_shown() -> None:
    async with served(Speaker("abcdef")) as server:
        answer = (await server.post(TEXT, prompt="p", max_tokens=40, stop=["zz", "cde"])).json()
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("ab", "stop")
        assert len(server.speaker.jobs) == 1
    assert server.speaker.cancelled == server.speaker.jobs


async def test_a_request_says_how_tokens_are_drawn_and_the_model_what_it_leaves_out() -> None:
    async with served(Speaker()) as server:
        await server.post(TEXT, prompt="p", temperature=0, top_p=0.5, top_k=3, seed=5)
        await server.post(TEXT, prompt=[97, 98])
        first, second = server.speaker.jobs
    assert first.sampling == Sampling(0, 3, 0.5, 5)
    assert (second.sampling.temperature, second.sampling.top_k, second.sampling.top_p) == (0.7, 50, 0.9)
    assert (second.prompt, second.limit) == ([97, 98], 16)


async def test_a_client_that_leaves_frees_its_slot_before_the_next_token() -> None:
    async with served(Speaker(at_once=False), slots=1) as server:
        asking = asyncio.create_task(server.post(TEXT, prompt="p", stream=True))

        async def working() -> bool:
            return (await server.stats())["processing"] == 1 and bool(server.speaker.jobs)

        await until(working)
        asking.cancel()

        async def idle() -> bool:
            return (await server.stats())["processing"] == 0

        await until(idle)
        assert server.speaker.cancelled == server.speaker.jobs


async def test_a_client_that_leaves_frees_its_slot_where_the_generation_then_fails() -> None:
    class Failing(Speaker):
        def cancel(self, job: Job) -> None:
            job.said.put_nowait([1])
            job.said.put_nowait(Failed("out of memory"))

    async with served(Failing(at_once=False), slots=1) as server:
        asking = asyncio.create_task(server.post(TEXT, prompt="p", stream=True))

        async def working() -> bool:
            return bool(server.speaker.jobs)

        await until(working)
        asking.cancel()

        async def idle() -> bool:
            return (await server.stats())["processing"] == 0

        await until(idle)


async def test_no_more_than_the_slots_are_computed_at_a_time() -> None:
    async with served(Speaker(at_once=False), slots=2) as server:
        asking = [asyncio.create_task(server.post(TEXT, prompt="p", max_tokens=2)) for _ in range(3)]

        async def waiting() -> bool:
            stats = await server.stats()
            return (stats["processing"], stats["waiting"]) == (2, 1)

        await until(waiting)
        first, second = server.speaker.jobs
        server.speaker.say(first, 2)

        async def third() -> bool:
            return len(server.speaker.jobs) == 3

        await until(third)
        server.speaker.say(second, 2)
        server.speaker.say(server.speaker.jobs[2], 2)
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": MESSAGES, "n": 2}, "n"),
        ({"messages": MESSAGES, "tools": [{}]}, "tools"),
        ({"messages": MESSAGES, "functions": [{}]}, "functions"),
        ({"messages": MESSAGES, "logprobs": True}, "logprobs"),
        ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": MESSAGES, "logit_bias": {"5": 1}}, "logit_bias"),
        ({"messages": MESSAGES, "presence_penalty": 0.5}, "presence_penalty"),
        ({"messages": MESSAGES, "frequency_penalty": -1}, "frequency_penalty"),
        ({"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format"),
        (
            {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format",
        ),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature"),
        ({"messages": MESSAGES, "top_p": 2}, "top_p"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ({"messages": MESSAGES, "max_tokens": True}, "max_tokens"),
        ({"messages": MESSAGES, "stop": 5}, "stop"),
        ({"messages": MESSAGES, "seed": "x"}, "seed"),
    ],
)
async def test_what_it_cannot_do_is_refused_with_the_field(body: dict[str, object], param: str) -> None:
    async with served(Speaker()) as server:
        answer = await server.post(CHAT, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert f"`{param}`" in answer.json()["error"]["message"] or param == "messages"


async def test_what_asks_for_nothing_is_no_reason_to_refuse() -> None:
    nothing: dict[str, object] = {
        "n": 1,
        "logprobs": False,
        "top_logprobs": None,
        "logit_bias": {},
        "tools": [],
    }
    plain = {"response_format": {"type": "text"}, "presence_penalty": 0.0, "frequency_penalty": 0}
    async with served(Speaker()) as server:
        answer = await server.post(CHAT, messages=MESSAGES, max_tokens=1, **nothing, **plain)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("name", "value"), [("best_of", 2), ("echo", True), ("suffix", "x"), ("logprobs", 3)]
)
async def test_what_completions_cannot_do_is_refused_too(name: str, value: object) -> None:
    async with served(Speaker()) as server:
        answer = await server.post(TEXT, prompt="x", **{name: value})
        assert server.speaker.jobs == []
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


async def test_refusals_have_openai_s_shape() -> None:
    async with served(Speaker()) as server:
        long = await server.post(TEXT, prompt="p" * 64)
        template = await server.post(CHAT, messages=[{"role": "nobody", "content": "x"}])
        words = await server.client.post(CHAT, content=b"{")
        nowhere = await server.client.get("/nowhere")
        vectors = await server.post("/v1/embeddings", input="x")
        unknown = await server.post(TEXT, prompt=[97, 256])
        empty = await server.post(TEXT, prompt="")
        assert server.speaker.jobs == []
    assert long.status_code == 400
    assert long.json()["error"]["type"] == "exceed_context_size_error"
    assert (long.json()["error"]["n_prompt_tokens"], long.json()["error"]["n_ctx"]) == (64, 64)
    assert (template.status_code, template.json()["error"]["message"]) == (400, "there is no role nobody")
    assert (unknown.status_code, "token 256" in unknown.text) == (400, True)
    assert (empty.status_code, "no tokens" in empty.text) == (400, True)
    assert (words.status_code, nowhere.status_code, vectors.status_code) == (400, 404, 501)


async def test_an_answer_ends_where_the_context_does() -> None:
    async with served(Speaker(), context=10) as server:
        answer = (await server.post(CHAT, messages=MESSAGES)).json()
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}


async def test_a_generation_that_breaks_off_is_an_error_before_and_within_a_stream() -> None:
    async with served(Speaker(at_once=False)) as server:

        async def broken(after: int) -> str:
            count = len(server.speaker.jobs)
            asking = asyncio.create_task(server.post(TEXT, prompt="p", stream=True))

            async def asked() -> bool:
                return len(server.speaker.jobs) > count

            await until(asked)
            job = server.speaker.jobs[-1]
            if after:
                server.speaker.say(job, after)
            job.said.put_nowait(Failed("the loop has ended", fatal=bool(after)))
            answer = await asking
            assert answer.status_code == (200 if after else 500)
            return answer.text

        assert json.loads(await broken(0))["error"]["message"] == "the loop has ended"
        assert server.failed == []
        text = await broken(2)
        assert "the loop has ended" in text
        assert "[DONE]" not in text
        assert server.failed == ["the loop has ended"]
        assert (await server.stats())["processing"] == 0


async def test_a_failure_of_its_own_ends_the_connection_and_frees_the_slot() -> None:
    class Broken(Speaker):
        def start(self, job: Job) -> None:
            if not self.jobs:
                self.jobs.append(job)
                raise KeyError("of our own making")
            super().start(job)

    async with served(Broken(), slots=1) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await server.post(TEXT, prompt="p")
        assert (await server.post(TEXT, prompt="p", max_tokens=1)).status_code == 200


async def test_it_sleeps_when_it_is_idle_and_answers_nothing_until_it_wakes() -> None:
    async with served(Speaker(at_once=False)) as server:
        asking = asyncio.create_task(server.post(TEXT, prompt="p", max_tokens=1))

        async def working() -> bool:
            return bool(server.speaker.jobs)

        await until(working)
        assert (await server.post("/sleep")).status_code == 409
        server.speaker.say(server.speaker.jobs[0], 1)
        assert (await asking).status_code == 200
        asleep = await server.post("/sleep")
        assert (asleep.status_code, asleep.json()) == (200, {"level": "file", "bytes": 100, "seconds": 0.5})
        assert server.speaker.closed
        assert (await server.client.get("/health")).status_code == 503
        assert (await server.post(TEXT, prompt="p")).status_code == 503
        assert (await server.stats())["asleep"] is True
        server.bed.full = True
        assert (await server.post("/wake")).status_code == 500
        assert (await server.client.get("/health")).status_code == 503
        server.bed.full = False
        assert (await server.post("/wake")).json() == {"bytes": 100, "seconds": 0.1}
        assert not server.speaker.closed
        assert (await server.client.get("/health")).status_code == 200


async def test_a_sleep_without_room_is_refused_and_nothing_has_changed() -> None:
    async with served(Speaker()) as server:
        server.bed.full = True
        refused = await server.post("/sleep")
        assert refused.status_code == 507
        assert "no space left" in refused.json()["error"]["message"]
        assert (await server.post(TEXT, prompt="p", max_tokens=1)).status_code == 200
        server.bed.level = ""
        assert (await server.post("/sleep")).status_code == 501


async def test_tokens_and_back() -> None:
    async with served(Speaker()) as server:
        tokens = (await server.post("/tokenize", content="ab")).json()["tokens"]
        assert (await server.post("/detokenize", tokens=tokens)).json() == {"content": "ab"}
        assert (await server.post("/detokenize", tokens=[1 << 40])).status_code == 400
        assert (await server.client.get("/v1/models")).json()["data"][0]["id"] == "m"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{}", "missing"),
        ('{"contxt": 1}', "contxt: there is no such parameter"),
        ('{"context": "1"}', "context: '1' is no int"),
        ("x", "Expecting value"),
    ],
)
def test_bad_parameters_end_it_at_once(argument: str, message: str) -> None:
    argv = [sys.executable, "-m", "modelyard.servers.transformers", argument]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "error: invalid argument" in ended.stderr
    assert message in ended.stderr


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    given = {"address": f"unix:{tmp_path}/s", "model": "m", "path": "/", "context": 1}
    code = (
        "import sys, runpy; sys.modules['torch'] = None; "
        f"sys.argv = ['x', {json.dumps(json.dumps(given))}]; "
        "runpy.run_module('modelyard.servers.transformers', run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert "pip install 'modelyard[transformers]'" in ended.stderr
    assert not (tmp_path / "s").exists()
