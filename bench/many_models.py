"""What a registry of 1,000 models with 5 versions each costs, beside one of 10: a page, a start, a request.

Both servers run at once, and take turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import urllib.request
from functools import partial
from hashlib import sha256
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import request_path
from contestants import Contestant, Contestants, build
from measuring import median_and_spread, report, table
from modelyard.registry import Registry
from modelyard.registry.tables import ModelRow, NameRow, PolicyRow, VersionRow

FEW, MANY, VERSIONS = 10, 1000, 5
PAGE = "/v1/models?limit=10"
PAGES = 50
CAPABILITIES = {"features": ["chat"], "context": None, "languages": [], "pairs": []}


def measure(rounds: int, seconds: float, seed: int) -> None:
    """Print the table of both."""
    build()
    with Contestants() as started:
        started.mock()
        names = {count: f"{count:,} models" for count in (FEW, MANY)}
        starts = {count: _start(started, count) for count in (FEW, MANY)}
        pages: dict[int, list[float]] = {count: [] for count in names}
        cpu: dict[int, list[float]] = {count: [] for count in names}
        for _ in range(rounds):
            for count, (contestant, _seconds) in starts.items():
                pages[count].append(_page(contestant))
                before = contestant.cpu_seconds()
                loaded = request_path._load(contestant, clients=request_path.CLIENTS, duration=seconds)
                cpu[count].append((contestant.cpu_seconds() - before) / loaded["requests"] * 1e6)
    rows = [
        [
            names[count],
            median_and_spread(pages[count]),
            f"{starts[count][1]:.2f}",
            median_and_spread(cpu[count]),
        ]
        for count in names
    ]
    page, request = (
        median_and_spread([many / few for few, many in zip(found[FEW], found[MANY], strict=True)])
        for found in (pages, cpu)
    )
    text = table(["registered", "a page of 10, CPU µs", "start, s", "CPU µs/request"], rows)
    text += (
        f"\n\n{MANY:,} models with {VERSIONS} versions each against {FEW}, round by round: a page {page} x, "
        f"a request {request} x the CPU; the start takes {starts[MANY][1] - starts[FEW][1]:.2f} s more."
    )
    values = {"seed": seed, "pages": pages, "cpu": cpu, "starts": {n: one[1] for n, one in starts.items()}}
    report("many_models", "Many models", text, values)


def _start(started: Contestants, count: int) -> tuple[Contestant, float]:
    """A server with so many registered models, and the seconds until it answered."""
    began = [0.0]

    def prepare(data: Path) -> None:
        asyncio.run(_fill(data, count))
        began[0] = time.monotonic()

    contestant = request_path.start_modelyard(started, prepare=prepare)
    return dataclasses.replace(contestant, name=f"{count:,} models"), time.monotonic() - began[0]


async def _fill(data: Path, count: int) -> None:
    """A registry as a server leaves it behind, written in one transaction."""
    data.mkdir(parents=True, mode=0o700)
    url = f"sqlite:///{data}/registry.db"
    registry = Registry(url)
    await registry.open()
    await registry.close()
    engine = create_engine(url)
    with Session(engine) as session:
        for number in range(1, count + 1):
            session.add_all(_rows(number))
        session.commit()
    engine.dispose()


def _rows(number: int) -> list[object]:
    name, common = f"model-{number:04}", {"created": 0.0, "created_by": "bench"}
    version = partial(VersionRow, model_id=number, state="registered", detail="", **common)
    specs = [
        {"engine": "fake", "parameters": {"seed": number, "tokens_per_second": 10 + one}}
        for one in range(VERSIONS)
    ]
    return [
        ModelRow(
            id=number,
            name=name,
            owner="bench",
            description="",
            revision=VERSIONS,
            current=1,
            previous=None,
            policy=1,
            created=0.0,
            changed=0.0,
        ),
        NameRow(name=name, model_id=number, place=0),
        PolicyRow(model_id=number, number=1, policy={"keep_alive": "5m"}, **common),
        *(
            version(
                number=one,
                digest=sha256(json.dumps(spec).encode()).hexdigest(),
                spec=spec,
                capabilities=CAPABILITIES,
            )
            for one, spec in enumerate(specs, start=1)
        ),
    ]


def _page(contestant: Contestant) -> float:
    """CPU µs of one page."""
    request = urllib.request.Request(
        f"http://{contestant.address}{PAGE}", headers={"authorization": f"Bearer {contestant.key}"}
    )
    before = contestant.cpu_seconds()
    for _ in range(PAGES):
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            assert len(json.load(answer)["data"]) == 10
    return (contestant.cpu_seconds() - before) / PAGES * 1e6
