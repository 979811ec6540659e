"""Many requests over five models with memory for two, while instances are killed, stopped and made to fail,
and clients leave.

Nearly every answer is right, every other one is a named error, no stream is torn, and nothing is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest

from gateway.answers import Stream
from gateway.live_yard import LiveYard, fake, live_yard, right_text
from launchers.process_table import open_fds
from modelyard.core.lifecycle import InstanceState
from waiting import until

MODELS = "abcde"
CLIENTS = 10
TOKENS = 12
TOLD = frozenset(  # how a request may end instead of being answered
    {
        "engine_died",
        "engine_unreachable",
        "engine_protocol_error",
        "first_byte_timeout",
        "token_timeout",
        "request_deadline",
        "cut_at_drain",
        "load_failed",
    }
)
LASTING = ("registry.db", "journal-")  # files that are opened when first needed, and closed with the yard
ORDERS = ({"crash_after_tokens": 3}, {"crash_mid_event": 2}, {"hang_after_tokens": 2}, {"status": 500})


@dataclass
class Chaos:
    """One storm: `plain` requests without and `streams` with streaming, and `faults` spread over them."""

    yard: LiveYard
    random: Random
    plain: int
    streams: int
    faults: int
    done: int = 0
    right: int = 0
    done_faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    stream_errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self) -> None:
        jobs = [False] * self.plain + [True] * self.streams
        self.random.shuffle(jobs)
        queue = list(enumerate(jobs))
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client(queue))
            group.create_task(self._strike(group, len(jobs)))

    # -- clients ------------------------------------------------------------------------------------------

    async def _client(self, queue: list[tuple[int, bool]]) -> None:
        while queue:
            number, streaming = queue.pop()
            model, prompt = self.random.choice(MODELS), f"request {number}"
            send = self._stream if streaming else self._ask
            async with asyncio.timeout(60.0):
                await send(model, prompt)
            self.done += 1

    async def _ask(self, model: str, prompt: str) -> None:
        answer = await self.yard.chat(model, prompt, tokens=TOKENS)
        if answer.status == 200:
            if answer.text == right_text(model, prompt, TOKENS):
                self.right += 1
            else:
                self.wrong.append(f"{model}, {prompt}: {answer.text!r}")
        else:
            self.errors[answer.code] += 1

    async def _stream(self, model: str, prompt: str) -> None:
        stream = await self.yard.stream(model, prompt, tokens=TOKENS)
        problem = self._problem(stream, right_text(model, prompt, TOKENS))
        if problem:
            self.wrong.append(f"{model}, {prompt}: {problem}: {stream}")

    def _problem(self, stream: Stream, right: str) -> str:
        """What is wrong with a stream; empty when it is whole, or ended by one named error."""
        if stream.status != 200:
            self.stream_errors[stream.refusal.code] += 1
            return ""
        if stream.left:
            return "half an event"
        if stream.code:
            self.stream_errors[stream.code] += 1
            return "" if right.startswith(stream.text) and not stream.done else "wrong before its error"
        return "" if stream.done and stream.text == right else "neither whole nor ended by an error"

    # -- faults -------------------------------------------------------------------------------------------

    async def _strike(self, group: asyncio.TaskGroup, jobs: int) -> None:
        """One fault each time that so many requests have ended."""
        kinds = (self._kill_engine, self._kill_shim, self._stop_engine, self._order, self._leave)
        for number in range(self.faults):
            due = number * jobs // self.faults
            await until(lambda due=due: self.done >= due and self._live(), 120.0)  # type: ignore[misc]
            kind = kinds[number % len(kinds)]
            self.done_faults[kind.__name__.strip("_")] += 1
            group.create_task(kind())

    def _live(self) -> list[list[int]]:
        """The processes of each instance that is not leaving: the engine first, the shim last."""
        leaving = (InstanceState.STOPPING, InstanceState.RELEASING)
        pids = [
            self.yard.driver.launcher.pids(one.id)
            for one in self.yard.state.instances.values()
            if one.state not in leaving
        ]
        return [processes for processes in pids if len(processes) > 1]

    async def _kill_engine(self) -> None:
        self._signal(0, signal.SIGKILL)

    async def _kill_shim(self) -> None:
        self._signal(-1, signal.SIGKILL)

    async def _stop_engine(self) -> None:
        self._signal(0, signal.SIGSTOP)

    def _signal(self, which: int, number: signal.Signals) -> None:
        try:
            os.kill(self.random.choice(self._live())[which], number)
        except ProcessLookupError:
            return  # it was dying already: a fault all the same

    async def _order(self) -> None:
        """A request that makes its engine fail; it is told what happened like any other."""
        order = self.random.choice(ORDERS)
        stream = await self.yard.stream(self.random.choice(MODELS), tokens=TOKENS, fake=order)
        code = stream.code if stream.status == 200 else stream.refusal.code
        if code not in TOLD and stream.status != 502:
            self.wrong.append(f"{order}: {stream}")

    async def _leave(self) -> None:
        """A client that leaves in the middle of its stream, or before it begins."""
        async with self.yard.open_stream(self.random.choice(MODELS), tokens=10_000) as (_, more):
            await anext(more, None)


async def storm(plain: int, streams: int, faults: int, *, right: float) -> None:
    """`right` is the share of answers that have to be right; the rest are told a named error."""
    seed = int(os.environ.get("MODELYARD_CHAOS_SEED") or Random().randrange(2**32))
    print(f"MODELYARD_CHAOS_SEED={seed}")
    model = fake(
        slots=4,
        first_byte_timeout="1s",
        token_timeout="1s",
        request_timeout="10s",
        load_cap="5s",
        max_wait="60s",
        parameters={"tokens_per_second": 100.0},
    )
    async with live_yard(dict.fromkeys(MODELS, model)) as yard:
        await yard.load("a")  # after its first stop, the launcher keeps a spare shim
        await yard.unload("a")
        descriptors = open_fds(LASTING)
        chaos = Chaos(yard, Random(seed), plain, streams, faults)
        await chaos.run()
        print(chaos.done_faults, chaos.errors, chaos.stream_errors, f"starts: {yard.state.sequence}")
        assert chaos.wrong == []
        assert chaos.done_faults.total() == faults
        assert set(chaos.errors) | set(chaos.stream_errors) <= TOLD
        assert chaos.right >= right * plain
        await yard.settled()
        await yard.emptied()
        await yard.close()
        await until(lambda: open_fds(LASTING) <= descriptors)


@pytest.mark.timeout(120)
async def test_a_small_storm() -> None:
    # Two starts of one model that fail in a row refuse its whole queue: several requests of so few.
    await storm(plain=60, streams=60, faults=10, right=0.8)


@pytest.mark.e2e
@pytest.mark.timeout(600)
async def test_a_great_storm() -> None:
    await storm(plain=500, streams=500, faults=80, right=0.99)
