"""vLLM on the CPU beyond what every engine has to do: its APIs, its refusals, and starts that fail."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.heavy import MODEL, VLLM, absent
from gateway.live_yard import LiveYard, live_yard
from modelyard.launchers.processes import Process
from waiting import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(absent(VLLM)), reason=absent(VLLM)),
]


@asynccontextmanager
async def yard_of(**parameters: Any) -> AsyncIterator[LiveYard]:
    model = {
        "engine": "cpu",
        "source": str(MODEL),
        "slots": 2,
        "parameters": {"context": 512, "enforce_eager": True, **parameters},
    }
    engines = {"cpu": {"type": "vllm", "program": str(VLLM)}}
    patient = {"max_wait": "10m", "load_cap": "5m", "first_byte_timeout": "5m"}
    room = {"ram": {"memory": "6GB"}}
    async with live_yard({"smol": model}, engines=engines, devices=room, defaults=patient) as yard:
        yard.http.timeout = httpx.Timeout(300)
        yield yard


async def test_its_apis_and_its_refusals() -> None:
    async with yard_of(ngram=3) as yard:
        chat = await yard.chat("smol", "Say yes.", tokens=8, temperature=0)
        assert chat.text
        completed = await yard.post(
            "/v1/completions", {"model": "smol", "prompt": "Once", "max_tokens": 4, "temperature": 0}
        )
        assert completed.body["choices"][0]["text"]
        response = await yard.post(
            "/v1/responses", {"model": "smol", "input": "Say yes.", "max_output_tokens": 8}
        )
        assert response.body["output"]
        said = [{"role": "user", "content": "Say yes."}]
        message = await yard.post("/v1/messages", {"model": "smol", "messages": said, "max_tokens": 8})
        assert message.body["usage"]["output_tokens"] == 8
        short = await yard.post("/api/generate", {"model": "smol", "prompt": "Say yes.", "stream": False})
        assert short.body["response"]
        for stream in (False, True):
            long = await yard.post(
                "/v1/chat/completions",
                {"model": "smol", "messages": [{"role": "user", "content": "sea " * 2000}], "stream": stream},
            )
            assert (long.status, long.code) == (400, "context_length_exceeded"), long.body
            assert "512" in long.message
        wrong = await yard.chat("smol", "Hi", tokens=4, temperature=-1)
        assert (wrong.status, wrong.code) == (400, "invalid_request"), wrong.body


@pytest.mark.parametrize("name", ["VLLM::EngineCor", "VLLM::Worker"])  # the kernel keeps 15 characters
async def test_an_end_of_its_engine_costs_no_answer_and_leaves_nothing(name: str) -> None:
    before = sockets()
    async with yard_of() as yard:
        first = await yard.load("smol")
        request = asyncio.create_task(yard.chat("smol", "Tell a story.", tokens=400, ignore_eos=True))
        await until(lambda: bool(yard.leases()))
        (pid,) = [pid for pid in yard.pids("smol") if name_of(pid) == name]
        process = Process.find(pid)
        assert process is not None
        process.kill()
        answer = await request
        assert answer.status == 200, answer.body
        assert answer.headers["x-modelyard-instance"] != first.id
        assert answer.body["usage"]["completion_tokens"] == 400
        assert sockets() == before
    assert sockets() == before


def sockets() -> set[Path]:
    """Those with names as it gives them, in the folder that everybody shares."""
    return {path for path in Path(tempfile.gettempdir()).glob("*-*-*-*-*") if path.is_socket()}


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_a_flag_that_it_does_not_know_is_named() -> None:
    async with yard_of(extra_args=["--no-such-flag", "1"]) as yard:
        answer = await yard.chat("smol")
        assert (answer.status, answer.code) == (503, "cannot_load")
        assert "bad_arguments: exit code 2" in answer.message
        assert "vllm: error: unrecognized arguments: --no-such-flag 1" in answer.message


async def test_a_cache_that_is_too_small_for_one_request_is_named_from_far_up_its_log() -> None:
    async with yard_of(kv_cache_mib=8) as yard:
        answer = await yard.chat("smol")
        assert (answer.status, answer.code) == (503, "cannot_load")
        assert "bad_arguments" in answer.message
        assert "To serve at least one request with the model's max seq len (512)" in answer.message
        await until(lambda: not yard.state.instances)
