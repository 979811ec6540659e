"""What an engine that translates has to do in a yard, as the real thing, over a small model with random
weights; the table of `test_contract` has its rows as well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from e2e.heavy import PYTHON, absent
from gateway.live_yard import LiveYard, child_yard, left_behind, live_yard, short_folder
from modelyard.launchers.processes import Process
from servers.translation import random_models
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

MODEL = "many"
TEXTS = ["the red house", "two old dogs", "a small tree likes the green cat", "the cat is old"]
PARAMETERS: dict[str, dict[str, object]] = {
    "ctranslate2": {"threads": 1, "max_output": 16},
    "transformers": {"threads": 1, "max_output": 16, "translation": True},
}
PATIENT = {"max_wait": "10m", "load_cap": "3m", "keep_alive": "1h"}


@dataclass
class Bench:
    engine: str
    yard: LiveYard
    sections: dict[str, Any]

    async def ask(self, text: str = TEXTS[0]) -> str:
        answer = await self.yard.post("/translate", {"q": text, "source": "en", "target": "fr"})
        assert answer.status == 200, answer.body
        assert answer.body["model"] == MODEL
        return str(answer.body["translatedText"])

    def tree(self) -> list[Process]:
        return [one for pid in self.yard.pids(MODEL) if (one := Process.find(pid))]


@contextmanager
def sections(engine: str) -> Iterator[dict[str, Any]]:
    with short_folder() as folder:
        source = random_models.m2m100(folder / "model")
        model = {"engine": "cpu", "source": str(source), "slots": 16, "parameters": PARAMETERS[engine]}
        program = str(PYTHON) if engine == "transformers" else sys.executable
        yield {
            "devices": {"ram": {"memory": "3GB"}},
            "engines": {"cpu": {"type": engine, "program": program}},
            "models": {MODEL: model},
        }


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=sorted(PARAMETERS))
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    engine = request.param
    if engine == "transformers" and (reason := absent(PYTHON)):
        pytest.skip(reason)
    if engine == "ctranslate2" and find_spec("ctranslate2") is None:
        pytest.skip("there is no Python package ctranslate2: run make dev")
    with sections(engine) as given:
        models = {**given}.pop("models")
        more = {name: value for name, value in given.items() if name != "models"}
        async with live_yard(models, **more, defaults=PATIENT) as yard:
            yard.http.timeout = httpx.Timeout(300)
            yield Bench(engine, yard, given)


async def test_load_and_ready(bench: Bench) -> None:
    await bench.yard.load(MODEL)
    listed = (await bench.yard.http.get(f"/v1/models/{MODEL}")).json()
    assert "translation" in listed["modelyard"]["capabilities"]
    assert bench.tree()


async def test_translation(bench: Bench) -> None:
    alone = [await bench.ask(text) for text in TEXTS]
    assert len(set(alone)) > 1
    assert await asyncio.gather(*(bench.ask(text) for text in TEXTS * 4)) == alone * 4


async def test_crash(bench: Bench) -> None:
    right = await bench.ask()
    first = bench.tree()
    asked = [asyncio.create_task(bench.ask()) for _ in range(32)]
    first[0].kill()
    assert {await one for one in asked} == {right}
    assert bench.tree()[0] != first[0]


async def test_memory_is_as_planned(bench: Bench) -> None:
    """From the second start on."""
    await asyncio.gather(*(bench.ask(" ".join(TEXTS)) for _ in range(16)))
    await bench.yard.driver.observer.look()
    await bench.yard.unload(MODEL)
    await until(lambda: not bench.yard.instances(MODEL))
    instance = await bench.yard.load(MODEL)
    await asyncio.gather(*(bench.ask(" ".join(TEXTS)) for _ in range(16)))
    await bench.yard.driver.observer.look()
    accounts = bench.yard.state.ledger.devices.values()
    planned, measured = map(sum, zip(*(account.holds(instance.id) for account in accounts), strict=True))
    assert planned == pytest.approx(measured, rel=0.15)


async def test_memory_returned(bench: Bench) -> None:
    await bench.ask()
    await bench.yard.unload(MODEL)
    await until(lambda: not bench.yard.instances(MODEL))
    assert bench.yard.reserved() == 0


async def test_no_orphan(bench: Bench) -> None:
    """Whatever becomes of the server."""
    more = {name: value for name, value in bench.sections.items() if name != "models"}
    with short_folder() as folder:
        async with child_yard(folder, bench.sections["models"], **more, defaults=PATIENT) as yard:
            yard.http.timeout = httpx.Timeout(180)
            assert (await yard.post(f"/admin/models/{MODEL}/load")).status == 200
            owner = yard.owner()
            assert yard.processes(owner)
            os.kill(yard.process.pid, signal.SIGKILL)
            await yard.exited()
            await until(lambda: not left_behind(Path(folder), owner))
