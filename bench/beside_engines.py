"""What the gateway costs beside real engines: tokens a second through it and asked directly, and its CPU time
as a part of the engine's.

Run as `python bench/run.py engines`. The engines are those of the contract suite (tests/e2e/engines) that can
be run here. The two ways take turns on the same instance; a ratio is that of two neighbours.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from measuring import ROOT, cpu_seconds, report, table
from modelyard.core.types import Address
from modelyard.wire.call import Call, Headers
from modelyard.wire.pool import Pool

sys.path.insert(0, str(ROOT / "tests"))

from e2e.direct import answering
from e2e.engines.stand import CHAT, Stand, stands
from gateway.live_yard import ChildYard, child_yard, short_folder

CLIENTS = 16
TOKENS = 48  # of each answer
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t by degrees of freedom, two-sided
PATH = b"/v1/chat/completions"
HEADERS: Headers = [(b"content-type", b"application/json")]


@dataclass
class Measured:
    """One value per round."""

    ratio: list[float] = field(default_factory=list)  # tokens a second, through the gateway against directly
    rate: list[float] = field(default_factory=list)  # tokens a second, through it
    share: list[float] = field(default_factory=list)  # the gateway's CPU time against the engine's


def measure(rounds: int) -> None:
    """Print the table of all engines that can be run here."""
    found: dict[str, Measured] = {}
    said = []
    for stand in stands():
        if reason := stand.absent() or ("" if stand.local else "its processes are not ours"):
            said.append(f"{stand.name} was left out: {reason}")
        elif stand.name not in ("fake", "command"):  # which runs a llama.cpp, too
            found[stand.name] = asyncio.run(_engine(stand, rounds))
    rows = [
        [
            name,
            f"{statistics.mean(one.rate):.1f}",
            _mean(one.ratio, 3),
            _mean([100 * share for share in one.share], 2) + " %",
        ]
        for name, one in found.items()
    ]
    head = [f"{CLIENTS} clients", "tokens/s", "against direct access", "CPU, of the engine's"]
    note = (
        f"Means of {rounds} rounds with their 95 % confidence intervals; in a round both ways take turns, "
        f"{CLIENTS} streams of {TOKENS} tokens each."
    )
    values = {"rounds": rounds, "results": {name: vars(one) for name, one in found.items()}}
    report("engines", "Beside real engines", "\n".join([table(head, rows), "", note, *said]), values)


async def _engine(stand: Stand, rounds: int) -> Measured:
    """A yard of this engine with a slot for each client, in a process of its own."""
    measured = Measured()
    with short_folder() as folder, stand.sections(folder) as sections:
        models = {CHAT: {**sections.pop("models")[CHAT], "slots": CLIENTS}}
        patient = {"load_cap": stand.start, "max_wait": stand.start}
        async with child_yard(folder, models, **sections, defaults=patient) as yard:
            yard.http.timeout = stand.start
            answer = await yard.post(f"/admin/models/{CHAT}/load")
            assert answer.status == 200, answer.body
            await _measure(yard, stand, rounds, measured)
    return measured


async def _measure(yard: ChildYard, stand: Stand, rounds: int, measured: Measured) -> None:
    (record,) = yard.records()
    ways = {
        True: Pool(Address(path=str(yard.folder / "yard.sock"))),
        False: Pool(answering(_tree(record["pid"]))),
    }
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        **stand.long,
    }
    try:
        for pool in ways.values():
            await _load(pool, body)
        for number in range(rounds):
            rates = {}
            for through in (True, False) if number % 2 else (False, True):
                before = cpu_seconds(yard.process.pid, alone=True), cpu_seconds(record["pid"])
                rates[through] = await _load(ways[through], body)
                after = cpu_seconds(yard.process.pid, alone=True), cpu_seconds(record["pid"])
                if through:
                    measured.share.append((after[0] - before[0]) / (after[1] - before[1]))
            measured.rate.append(rates[True])
            measured.ratio.append(rates[True] / rates[False])
    finally:
        for pool in ways.values():
            pool.close()


def _tree(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


async def _load(pool: Pool, body: dict[str, Any]) -> float:
    """Tokens a second of all clients together."""
    loop = asyncio.get_running_loop()
    began, content = loop.time(), json.dumps(body).encode()

    async def client() -> int:
        answer = _Stream()
        async with asyncio.timeout(600):
            await pool.run(Call(b"POST", PATH, HEADERS, content, answer))
        assert answer.status == 200
        return answer.events

    return sum(await asyncio.gather(*(client() for _ in range(CLIENTS)))) / (loop.time() - began)


class _Stream:
    """Counts the pieces of text of one answer."""

    def __init__(self) -> None:
        self.status = self.events = 0

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status

    def on_body(self, data: bytes) -> None:
        self.events += data.count(b'"content":')


def _mean(values: Sequence[float], digits: int) -> str:
    """The mean, with its confidence interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    t = T_95[min(len(values) - 2, len(T_95) - 1)]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
