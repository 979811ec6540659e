"""What is said of memory is true: estimates are corrected by what was seen, the pages agree with /proc."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.real_models import demo_sections
from gateway.answers import Answer
from gateway.live_yard import LiveYard, live_yard
from modelyard.runtime.footprints import Footprint
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REQUESTS = 50
WITHIN = 0.15
AGREE = 2_000_000  # bytes that may come or go between two looks
MODELS = ("smol-fast", "smol-wide")


def private_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process, as the kernel counts it."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024


def really_used(yard: LiveYard, model: str) -> int:
    return sum(private_bytes(pid) for pid in yard.pids(model))


async def ask(yard: LiveYard, number: int) -> None:
    """One of fifty requests: chats, streams, completions and token counts, short and long."""
    model, prompt = MODELS[number % 2], "Tell me of the sea and its ships. " * (1 + number % 7)
    tokens = 2 + number % 5
    answer: Answer
    match number % 4:
        case 0:
            answer = await yard.chat(model, prompt, tokens=tokens)
        case 1:
            stream = await yard.stream(model, prompt, tokens=tokens)
            assert (stream.status, stream.code, stream.done) == (200, "", True)
            return
        case 2:
            body = {"model": model, "prompt": prompt, "max_tokens": tokens}
            answer = await yard.post("/v1/completions", body)
        case _:
            answer = await yard.post("/tokenize", {"model": model, "content": prompt})
    assert answer.status == 200, answer.body


async def first_run(yard: LiveYard, model: str) -> Footprint:
    """Load a model for the first time, have it answer, unload it; what was stored of it."""
    before = set(yard.driver.footprints._entries)
    await yard.load(model)
    (version,) = (v for v in yard.state.versions.values() if v.spec.model == model)
    entry = yard.driver.entries[version.key]
    assert entry.files is not None
    estimate = entry.engine.need(entry.spec, entry.files).bytes
    assert (await yard.chat(model, "Say yes. " * 60, tokens=8)).status == 200
    await yard.unload(model)
    await until(lambda: not yard.state.instances)
    (key,) = set(yard.driver.footprints._entries) - before
    # It is measured when it is ready and before it ends; the second is kept beside the stop.
    await until(lambda: yard.driver.footprints._entries[key].observations == 2)
    footprint = yard.driver.footprints._entries[key]
    (learned,) = footprint.bytes
    print(f"{model}: estimated {estimate:,}, seen {learned:,}: {estimate / learned - 1:+.1%}")
    assert 0.5 < estimate / learned < 2.0
    return footprint


async def test_a_second_load_takes_what_the_first_one_taught() -> None:
    demo = demo_sections()
    async with live_yard(demo.pop("models"), defaults={"max_wait": "2m"}, **demo) as yard:
        taught = {model: await first_run(yard, model) for model in MODELS}
        for model, footprint in taught.items():
            instance = await yard.load(model)
            (charge,) = instance.placement
            assert charge.bytes == pytest.approx(footprint.bytes[0] * (1 + footprint.margin), rel=0.01)
        for start in range(0, REQUESTS, 5):
            await asyncio.gather(*(ask(yard, number) for number in range(start, start + 5)))
        for model, footprint in taught.items():
            used, stored = really_used(yard, model), footprint.bytes[0]
            print(f"{model}: stored {stored:,}, then used {used:,}: {used / stored - 1:+.1%}")
            assert used == pytest.approx(stored, rel=WITHIN)
        await pages_agree(yard)


async def pages_agree(yard: LiveYard) -> None:
    """/admin/devices and `modelyard ps --json` say what /proc says."""
    await yard.driver.observer.look()
    used = {instance.id: really_used(yard, model) for model in MODELS for instance in yard.instances(model)}
    assert len(used) == len(MODELS)
    (ram,) = (d for d in (await yard.http.get("/admin/devices")).json() if d["id"] == "ram")
    assert {use["instance"] for use in ram["instances"]} == set(used)
    for use in ram["instances"]:
        assert use["observed"] == pytest.approx(used[use["instance"]], abs=AGREE)
        assert all(Path(f"/proc/{pid}").exists() for pid in use["pids"])
    assert ram["observed"] == pytest.approx(sum(used.values()), abs=2 * AGREE)
    assert sum(used.values()) <= ram["budget"]
    status = await asyncio.to_thread(_ps, f"unix:{yard.socket}")
    for instance in status["instances"]:
        (holding,) = instance["memory"]
        assert holding["device"] == "ram"
        assert holding["observed"] == pytest.approx(used[instance["id"]], abs=AGREE)
        assert holding["observed"] <= holding["reserved"]


def _ps(url: str) -> Any:
    words = [sys.executable, "-m", "modelyard", "ps", "--json", "--url", url]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout)
