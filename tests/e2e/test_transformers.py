"""Our server over the Transformers library as a real process: what the engines' contract does not ask."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e import large_model
from e2e.heavy import MODEL, PYTHON, absent
from gateway.live_yard import LiveYard, live_yard
from servers.live import Live, running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(absent(PYTHON)), reason=absent(PYTHON)),
]
QUESTIONS = (
    *("Say yes.", "Tell me about the sea.", "What is 2+2?", "Write a poem."),
    *("Name three cities.", "Who was Bach?", "Explain rain.", "Count to ten."),
)
SCRIPT = Path(__file__).parent / "transformers_sleep.py"


@asynccontextmanager
async def served(**parameters: object) -> AsyncIterator[Live]:
    def argv(socket: str) -> list[str]:
        told = {"address": f"unix:{socket}", "model": "m", "path": str(MODEL), "context": 1024, "slots": 8}
        module = "modelyard.servers.transformers"
        return ["nice", str(PYTHON), "-m", module, json.dumps(told | parameters)]

    async with running(argv) as live:
        ends = time.monotonic() + 180
        while "model loaded" not in live.log:
            assert live.process.poll() is None, live.log[-2000:]
            assert time.monotonic() < ends, live.log[-2000:]
            await asyncio.sleep(0.1)
        live.client.timeout = 300
        yield live


async def chat(live: Live, question: str, **more: object) -> str:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0, **more}
    answer = await live.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_an_answer_is_the_same_alone_and_in_a_batch() -> None:
    async with served() as live:
        alone = [await chat(live, question) for question in QUESTIONS]
        drawn = await chat(live, QUESTIONS[1], temperature=0.9, top_p=0.95, seed=7)
        batch = await asyncio.gather(
            *(chat(live, question) for question in QUESTIONS),
            chat(live, QUESTIONS[1], temperature=0.9, top_p=0.95, seed=7),
        )
        assert [*batch] == [*alone, drawn]
        assert drawn != alone[1]
        assert drawn != await chat(live, QUESTIONS[1], temperature=0.9, top_p=0.95, seed=8)
        stats = (await live.client.get("/stats")).json()
        assert stats["processing"] == 0
        assert 0 <= stats["kv_use"] < 1


@pytest.mark.parametrize("pooling", ["mean", "last"])
async def test_embeddings_of_many_clients_are_computed_together_and_as_if_alone(pooling: str) -> None:
    texts = [question * (number % 4 + 1) for number, question in enumerate(QUESTIONS)]
    batching = {"batch": 2048, "batch_size": 64, "max_wait_ms": 2000}
    async with served(embedding=True, pooling=pooling, **batching) as live:

        async def embed(*inputs: str) -> list[list[float]]:
            answer = await live.client.post("/v1/embeddings", json={"input": inputs})
            assert answer.status_code == 200, answer.text
            return [one["embedding"] for one in answer.json()["data"]]

        async def batches() -> float:
            return float((await live.client.get("/stats")).json()["batches"])

        alone = [(await embed(text))[0] for text in texts]
        assert await batches() == len(texts)
        together = await asyncio.gather(*map(embed, texts))
        assert await batches() <= len(texts) + 2, "eight clients, in two groups of like length at most"
        for one, (other,) in zip(alone, together, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert await embed(*texts) == [pytest.approx(one, abs=1e-5) for one in alone]


async def test_every_slot_has_room_for_its_whole_context() -> None:
    context = 262  # two pages of the cache
    async with served(slots=3, context=context) as live:
        for turn in range(3):  # pages that earlier prompts left behind make room
            bodies = [
                {"prompt": [100 + 7 * slot + turn] * (context - 8), "max_tokens": 99, "ignore_eos": True}
                for slot in range(3)
            ]
            asking = (live.client.post("/v1/completions", json=body) for body in bodies)
            answers = [answer.json() for answer in await asyncio.gather(*asking)]
            assert [answer["usage"]["total_tokens"] for answer in answers] == [context] * 3


async def test_guesses_change_the_time_and_not_the_answer() -> None:
    async with served() as live:
        plain = [await chat(live, question) for question in QUESTIONS[:3]]
        drawn = await chat(live, QUESTIONS[1], temperature=0.9, seed=7)
    for speculation in ({"draft": str(MODEL), "draft_tokens": 4}, {"ngram": 4}):
        async with served(slots=2, **speculation) as live:
            guessed = await asyncio.gather(*(chat(live, question) for question in QUESTIONS[:3]))
            assert [*guessed] == plain, speculation
            assert await chat(live, QUESTIONS[1], temperature=0.9, seed=7) == drawn
            stats = (await live.client.get("/stats")).json()
            if "draft" in speculation:  # it guesses what it says itself
                assert 0.8 * stats["drafted"] <= stats["accepted"] <= stats["drafted"]


@pytest.mark.parametrize("speculation", [{}, {"ngram": 4}])
async def test_a_stop_text_that_the_last_token_completes(speculation: dict[str, object]) -> None:
    async with served(slots=1, **speculation) as live:
        body = {"prompt": "The sea is", "max_tokens": 4, "temperature": 0}
        said = (await live.client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        for _ in range(2):
            answer = await live.client.post("/v1/completions", json={**body, "stop": [said]})
            assert answer.json()["choices"][0] == {"index": 0, "finish_reason": "stop", "text": ""}
        assert "Traceback" not in live.log


async def test_it_sleeps_and_wakes_over_its_api(tmp_path: Path) -> None:
    async with served(sleep_folder=str(tmp_path)) as live:
        before = await chat(live, QUESTIONS[0])
        process = psutil.Process(live.process.pid)
        ready = process.memory_full_info().uss
        asleep = (await live.client.post("/sleep")).json()
        assert asleep["level"] == "file"
        assert process.memory_full_info().uss < ready - 0.9 * asleep["bytes"]
        assert (await live.client.post("/wake")).status_code == 200
        assert await chat(live, QUESTIONS[0]) == before
        assert [*tmp_path.iterdir()] == []


async def test_no_gpu_and_no_model_are_said() -> None:
    for parameters, words in (
        ({"device": "cuda"}, "no GPU is visible"),
        ({"path": "/nowhere"}, "failed to load"),
    ):
        with pytest.raises(AssertionError, match=words):
            async with served(**parameters):
                pass


def test_the_draw_follows_the_scores() -> None:
    code = """
import torch
from collections import Counter
from modelyard.servers.transformers.asks import Sampling
from modelyard.servers.transformers.drawing import drawn
scores = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
def share(n, **how):
    got = Counter(int(drawn(scores.clone(), Sampling(seed=seed, **how), 5).argmax()) for seed in range(n))
    return [got[token] / n for token in range(4)]
assert all(abs(a - b) < 0.03 for a, b in zip(share(4000), [0.5, 0.25, 0.15, 0.1])), share(4000)
assert share(200, temperature=0) == [1, 0, 0, 0]
assert share(500, top_k=2)[2:] == [0, 0] and min(share(500, top_k=2)[:2]) > 0
assert share(500, top_p=0.6)[2:] == [0, 0] and share(100, top_p=0.3) == [1, 0, 0, 0]
"""
    subprocess.run([str(PYTHON), "-c", code], check=True, timeout=120)


def test_a_request_brings_no_template_of_its_own_and_what_a_template_raises_is_a_refusal() -> None:
    code = """
import sys
from types import SimpleNamespace as Of
from transformers import AutoTokenizer
from modelyard.servers.transformers.loading import Tokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = Of(get_input_embeddings=lambda: Of(num_embeddings=49152), can_generate=lambda: False)
words = Tokenizer(tokenizer, model)
def refused(call, *given):
    try:
        call(*given)
    except ValueError as error:
        return str(error)
hi = [{"role": "user", "content": "hi"}]
for name in ("chat_template", "padding", "max_length", "return_tensors", "tokenizer_kwargs", "tokenize"):
    assert f"`{name}`" in refused(words.chat, hi, {name: "x"}), name
assert "refuses this text" in refused(words.encode, chr(0xd800))
assert "refuses these messages" in refused(words.chat, [{"role": "user", "content": chr(0xd800)}], {})
for template in ("{{ range(10 ** 9) }}", "{{ 1 // 0 }}"):
    tokenizer.chat_template = template
    assert "refuses these messages" in refused(words.chat, hi, {}), template
tokenizer.chat_template = "{{ mood }}"
assert words.decode(words.chat(hi, {"mood": "glad"})) == "glad"
"""
    subprocess.run([str(PYTHON), "-c", code, str(MODEL)], check=True, timeout=120)


def test_a_sleep_gives_the_weights_back_and_a_wake_the_same_scores(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):  # the files have the latter
        told = asleep_and_awake(MODEL, tmp_path, dtype)
        assert told["same"]
        assert told["still"]
        assert told["asleep"] < told["ready"] - 0.9 * told["weights"]
        assert told["awake"] > told["asleep"] + 0.9 * told["weights"], "its memory is its own again"
        if dtype == "bfloat16":
            assert told["written"] < 1 << 20
        else:
            assert told["written"] >= told["weights"]


def test_files_that_changed_while_it_slept_are_not_woken_with(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    code = """
import os, sys
from modelyard.servers.transformers.loading import load
from modelyard.servers.transformers.parameters import parse
parameters = parse(sys.argv[1:])
model = load(parameters)
model.generator.close()
model.sleeper.sleep()
os.utime(parameters.path + "/model.safetensors", ns=(1, 1))
try:
    model.sleeper.wake()
except OSError as error:
    print(error)
os._exit(0)
"""
    told = {"address": "unix:/none", "model": "m", "path": str(folder), "context": 256, "dtype": "bfloat16"}
    argv = [str(PYTHON), "-c", code, json.dumps({**told, "sleep_folder": str(tmp_path)})]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert "has changed since the model was loaded" in ended.stdout, ended.stderr[-2000:]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    if reason := large_model.no_room(folder):
        pytest.skip(reason)
    large_model.write(folder)
    return folder


def test_a_large_model_gives_its_memory_back_and_wakes_the_same(large: Path, tmp_path: Path) -> None:
    told = asleep_and_awake(large, tmp_path, "bfloat16")
    print(json.dumps(told))
    assert told["weights"] >= large_model.LARGE
    assert told["same"]
    assert told["still"]
    assert (told["ready"] - told["asleep"]) / told["ready"] >= 0.8


async def test_a_large_model_sleeps_when_another_needs_its_memory(large: Path) -> None:
    parameters = {"context": 1024, "dtype": "bfloat16"}
    models = {
        "large": {"engine": "cpu", "source": str(large), "parameters": parameters, "slots": 1},
        "other": {"engine": "fake", "parameters": {"memory": {"ram": 2_000_000_000}}},
    }
    patient = {"max_wait": "10m", "load_cap": "5m", "patience": "50ms"}
    engines = {"cpu": {"type": "transformers", "program": str(PYTHON)}}
    devices = {"ram": {"memory": "6GB", "reserve": 0}}
    async with live_yard(models, engines=engines, devices=devices, defaults=patient) as yard:
        yard.http.timeout = 600
        first = await yard.chat("large", "Say yes.", temperature=0)
        assert first.status == 200, first.body
        (instance,) = yard.instances("large")
        held = resident(yard, instance.id)
        for _ in range(2):  # the second time it sleeps before its memory is its own again
            assert (await yard.chat("other")).status == 200
            assert instance.state.value == "asleep"
            assert resident(yard, instance.id) < held / 3
            began = time.monotonic()
            again = await yard.chat("large", "Say yes.", temperature=0)
            print(f"answers again after {time.monotonic() - began:.1f} s")
            assert again.text == first.text
            assert again.headers["x-modelyard-instance"] == instance.id
        (share,) = instance.version.need.shares  # type: ignore[union-attr]
        assert share.bytes > large_model.LARGE, "what woke teaches no smaller need"


def resident(yard: LiveYard, instance: str) -> int:
    """Bytes of host memory that its processes hold."""
    return sum(psutil.Process(pid).memory_info().rss for pid in yard.driver.launcher.pids(instance))


def asleep_and_awake(folder: Path, sleep_folder: Path, dtype: str) -> dict[str, Any]:
    parameters = {
        "address": "unix:/none",
        "model": "m",
        "path": str(folder),
        "context": 1024,
        "dtype": dtype,
        "sleep_folder": str(sleep_folder),
    }
    argv = [str(PYTHON), str(SCRIPT), json.dumps(parameters), str(time.time())]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))
