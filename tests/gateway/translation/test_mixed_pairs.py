"""Three models of 1 GB each, memory for one, two and three of them, and 64 clients with mixed pairs: over
processes of the fake engine, which stand for a thousand times the memory that they take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.live_yard import LiveYard, live_yard
from gateway.translation.translators import ask, translator
from modelyard.core.languages import name_of
from modelyard.sim.pairs import APART, SHARED, Ask, asks, in_order

GB = 1_000_000_000
CLIENTS, SEED, RATE, SECONDS = 64, 7, 50.0, 4.0
MOST_TOKENS = 16
MODELS = {"apart": APART, "shared": SHARED}
MAX_WAIT = 20.0


@dataclass
class Seen:
    """What 64 clients saw, in all: `waits` in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


@asynccontextmanager
async def house(models: Sequence[Sequence[str]], fit: int) -> AsyncIterator[LiveYard]:
    made = {
        f"m{number}": translator(
            *pairs,
            memory=GB,
            parameters={"load_time": 0.3, "tokens_per_second": 400},
        )
        for number, pairs in enumerate(models)
    }
    for model in made.values():
        model["slots"] = 8
    devices = {"gpu0": {"kind": "declared", "memory": fit * GB, "reserve": 0, "scale": 1000}}
    defaults = {"patience": "1s", "max_wait": f"{MAX_WAIT:g}s"}
    async with live_yard(made, devices=devices, defaults=defaults) as yard:
        yield yard


async def client(
    yard: LiveYard, mine: Sequence[Ask], began: float, known: Sequence[Sequence[str]], seen: Seen
) -> None:
    """Sends each of its texts at its time, or when the one before was answered."""
    loop = asyncio.get_running_loop()
    for number, one in enumerate(mine):
        await asyncio.sleep(
            began + one.at - loop.time()
        )  # the arrivals of the load, not a wait for something
        text = " ".join(f"w{number}" for _ in range(one.tokens))
        answer = await ask(yard, text, one.source, one.target)
        seen.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            seen.wrong.append(answer.text)
            continue
        said = answer.json()
        pair = name_of((one.source, one.target))
        if said["translatedText"] != f"[{one.target}] {text}" or pair not in known[int(said["model"][1:])]:
            seen.wrong.append(f"{pair}: {said}")
        seen.waits.append(int(answer.headers["x-modelyard-queue-ms"]) / 1000.0)


async def served(yard: LiveYard, wanted: Sequence[Ask], known: Sequence[Sequence[str]]) -> Seen:
    seen, began = Seen(), asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(yard, wanted[number::CLIENTS], began, known, seen))
    return seen


@pytest.mark.parametrize(("scene", "fit"), [("apart", 1), ("apart", 2), ("shared", 2), ("shared", 3)])
async def test_64_clients_with_mixed_pairs(scene: str, fit: int) -> None:
    known = MODELS[scene]
    pairs = sorted({pair for each in known for pair in each})
    wanted = asks(seed=SEED, rate=RATE, seconds=SECONDS, pairs=pairs)
    assert max(one.tokens for one in wanted) == MOST_TOKENS
    async with house(known, fit) as yard:
        seen = await served(yard, wanted, known)
        assert seen.statuses == {200: len(wanted)}, seen.wrong[:3]
        assert seen.wrong == []
        assert max(seen.waits) <= MAX_WAIT
        loads, strict = yard.state.sequence, in_order(wanted, known, fit)
        print(f"{scene}, memory for {fit}: {len(wanted)} requests, {loads} loads, in strict order {strict}")
        assert loads <= (3 if fit == 3 else 0.7 * strict)
