"""The request path: what one request and one streamed piece cost, in front of the same mock engine.

Run as `python bench/run.py request-path`. Contestants take turns within each round, in an order that the seed
shuffles, so that a busy neighbour on the machine hits them alike. The load comes from a process of its own.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contestants import Contestant, Contestants, build
from measuring import BUILT, ROOT, median_and_spread, report, table

NAMES = ("mock", "raw relay", "go proxy", "modelyard")
CLIENTS = 64
STREAMS = 256
TOKENS = 80  # per stream, 20 a second


@dataclass
class Measured:
    """One value per round. CPU in µs per request or per event, latency in µs."""

    cpu_per_request: list[float] = field(default_factory=list)
    requests_per_second: list[float] = field(default_factory=list)
    p50_alone: list[float] = field(default_factory=list)
    p99_loaded: list[float] = field(default_factory=list)
    cpu_per_event: list[float] = field(default_factory=list)
    broken: int = 0
    """Answers that were cut or refused."""


def measure(names: Sequence[str], rounds: int, seconds: float, seed: int) -> None:
    """Run the rounds, print the table, write bench/out/request_path.json."""
    build()
    order = random.Random(seed)
    results = {name: Measured() for name in names}
    with Contestants() as started:
        contestants = _start(started, names)
        for contestant in contestants:
            _load(contestant, clients=8, duration=0.3)
        for _ in range(rounds):
            order.shuffle(contestants)
            for contestant in contestants:
                _round(contestant, results[contestant.name], seconds)
    _report(results, rounds, seconds, seed)


def _start(started: Contestants, names: Sequence[str]) -> list[Contestant]:
    upstream = started.mock()
    starts = {
        "mock": lambda: upstream,
        "raw relay": lambda: started.raw_relay(upstream.address),
        "go proxy": lambda: started.go_proxy(upstream.address),
        "modelyard": lambda: start_modelyard(started),
    }
    return [starts[name]() for name in names]


def start_modelyard(
    started: Contestants,
    config: Path = ROOT / "bench" / "bench.yaml",
    prepare: Callable[[Path], None] = lambda data: None,
) -> Contestant:
    """Modelyard with keys, scheduler and metrics on, and the mock as its engine; `prepare` may fill its data
    folder before it starts."""
    mock = BUILT / "mock"
    return started.modelyard(config, {"BENCH_MOCK": str(mock)}, engine=mock, prepare=prepare)


def _round(contestant: Contestant, measured: Measured, seconds: float) -> None:
    before = contestant.cpu_seconds()
    loaded = _load(contestant, clients=CLIENTS, duration=seconds)
    cpu = contestant.cpu_seconds() - before
    measured.cpu_per_request.append(cpu / loaded["requests"] * 1e6)
    measured.requests_per_second.append(loaded["requests"] / loaded["seconds"])
    measured.p99_loaded.append(loaded["p99_us"])
    measured.p50_alone.append(_load(contestant, clients=1, duration=seconds / 3)["p50_us"])
    before = contestant.cpu_seconds()
    streamed = _load(contestant, clients=STREAMS, events=TOKENS)
    measured.broken += int(loaded["broken"] + streamed["broken"])
    measured.cpu_per_event.append((contestant.cpu_seconds() - before) / streamed["events"] * 1e6)


def _load(
    contestant: Contestant, *, clients: int, duration: float = 0.0, events: int = 0
) -> dict[str, float]:
    """One run of the load program. Raises CalledProcessError when more than 1 % of its clients failed."""
    argv = [str(BUILT / "load"), "-address", contestant.address, "-clients", str(clients)]
    argv += ["-duration", f"{duration}s", "-events", str(events), "-key", contestant.key]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=duration + 120.0)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _report(results: dict[str, Measured], rounds: int, seconds: float, seed: int) -> None:
    direct = statistics.median(results["mock"].p50_alone) if "mock" in results else 0.0
    rows = [
        [
            name,
            median_and_spread(one.cpu_per_request),
            median_and_spread(one.requests_per_second),
            median_and_spread([p50 - direct for p50 in one.p50_alone]) if name != "mock" else "0",
            median_and_spread(one.p99_loaded),
            median_and_spread(one.cpu_per_event),
            str(one.broken),
        ]
        for name, one in results.items()
    ]
    head = [
        "in front of the engine",
        "CPU µs/request",
        f"requests/s, {CLIENTS} clients",
        "added p50 µs, 1 client",
        f"p99 µs, {CLIENTS} clients",
        f"CPU µs/event, {STREAMS} streams",
        "broken answers",
    ]
    note = (
        f"\n\nMedian (smallest-largest) of {rounds} interleaved rounds of {seconds:g} s, seed {seed}. The "
        "first row is the engine alone: its CPU is not in the others' rows. A stream has 20 events/s."
    )
    if "go proxy" in results and "modelyard" in results:
        note += _against(results["go proxy"], results["modelyard"])
    values = {"seed": seed, "rounds": rounds, "results": {name: vars(one) for name, one in results.items()}}
    report("request_path", "Request path", table(head, rows) + note, values)


def _against(yardstick: Measured, ours: Measured) -> str:
    """Ours as a part of the yardstick, round by round: what slows the machine down for both cancels out."""
    request, event = (
        median_and_spread([own / other for own, other in zip(mine, theirs, strict=True)])
        for mine, theirs in (
            (ours.cpu_per_request, yardstick.cpu_per_request),
            (ours.cpu_per_event, yardstick.cpu_per_event),
        )
    )
    return f"\n\nModelyard's CPU as a part of the Go proxy's: {request} per request, {event} per event."
