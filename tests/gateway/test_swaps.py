"""Swaps: two models that take turns in memory for one of them, and no request fails."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from engines.demo_model import demo_gguf
from gateway.live_yard import SHARE, LiveYard, fake, live_yard, right_text

ONE = SHARE + SHARE // 2


def two_fakes(**settings: object) -> AbstractAsyncContextManager[LiveYard]:
    return live_yard({"a": fake(), "b": fake()}, memory=ONE, **settings)


async def alternate(yard: LiveYard, swaps: int) -> None:
    """Ask two models in turn, each time for the one that is not in memory; every third answer streams."""
    for number in range(swaps):
        model = "ab"[number % 2]
        prompt = f"turn {number}"
        if number % 3:
            answer = await yard.chat(model, prompt)
            assert (answer.status, answer.code) == (200, ""), f"swap {number}: {answer.body}"
            assert answer.text == right_text(model, prompt, 4)
        else:
            stream = await yard.stream(model, prompt)
            assert (stream.status, stream.code) == (200, ""), f"swap {number}: {stream.events}"
            assert stream.text == right_text(model, prompt, 4)
            assert stream.done
    assert yard.state.sequence >= swaps, "each turn had to start an instance"


async def test_sixty_swaps_without_a_failed_request() -> None:
    async with two_fakes() as yard:
        await alternate(yard, 60)


async def test_swaps_go_on_while_the_disk_is_full() -> None:
    async with two_fakes() as yard:
        full = yard.yard.config.server.data_dir / "instances.new"
        full.symlink_to("/dev/full")
        await alternate(yard, 4)
        health = (await yard.http.get("/health")).json()
        assert health == {"status": "degraded", "state_file": "No space left on device"}
        full.unlink()
        await alternate(yard, 2)
        assert (await yard.http.get("/health")).json() == {"status": "ok"}


@pytest.mark.e2e
@pytest.mark.timeout(600)
async def test_a_thousand_swaps_without_a_failed_request() -> None:
    async with two_fakes() as yard:
        await alternate(yard, 1000)


@pytest.mark.e2e
@pytest.mark.timeout(1800)
async def test_two_hundred_swaps_of_real_models() -> None:
    """Two names for one real model, with its own copy of the weights each. One thread each: several wait for
    one another in a busy loop, which takes seconds where the processors are shared."""
    model = {
        "engine": "llamacpp",
        "source": str(Path(demo_gguf())),
        "devices": ["ram"],
        "parameters": {"context": 512, "mmap": False, "threads": 1},
    }
    first = {**model, "parameters": {**model["parameters"], "context": 768}}  # type: ignore[dict-item]
    devices = {"ram": {"memory": "300MB", "reserve": 0}}
    async with live_yard({"a": first, "b": model}, devices=devices) as yard:
        for number in range(200):
            answer = await yard.chat("ab"[number % 2], "Say yes.", tokens=2, temperature=0)
            assert (answer.status, answer.code) == (200, ""), f"swap {number}: {answer.body}"
            assert answer.text
        assert yard.state.sequence >= 200, "each turn had to start an instance"
