"""Footprints as they are kept in each database, and shared by servers."""

from __future__ import annotations

import pytest

from modelyard.registry import Registry, footprints
from modelyard.registry.footprints import FootprintRecord


def record(files: str = "f", seen: float = 1.0, **footprint: object) -> FootprintRecord:
    return FootprintRecord(files, "llamacpp", "p", "cuda", footprint, seen)


async def kept(registry: Registry) -> dict[str, FootprintRecord]:
    _, records = await registry.footprints.all()
    return {one.files: one for one in records}


async def test_what_one_server_keeps_another_finds(registry: Registry, other: Registry) -> None:
    assert await registry.footprints.all() == ((0, 0.0), [])
    made = record(seen=1_700_000_000.123456, bytes=[2**40, 0], loads=[1.5])
    empty, full = await registry.footprints.keep([made])
    stamp, found = await other.footprints.all()
    assert (stamp, found) == (await registry.footprints.stamp(), [made])
    assert (empty, full) == ((0, 0.0), stamp)


async def test_the_later_observation_wins(registry: Registry, other: Registry) -> None:
    await registry.footprints.keep([record(seen=5.0, bytes=[5])])
    before = await registry.footprints.stamp()
    for seen in (4.0, 5.0):
        await other.footprints.keep([record(seen=seen, bytes=[6])])
    assert await kept(registry) == {"f": record(seen=5.0, bytes=[5])}
    assert await registry.footprints.stamp() == before
    await other.footprints.keep([record(seen=6.0, bytes=[7])])
    assert await kept(registry) == {"f": record(seen=6.0, bytes=[7])}
    assert await registry.footprints.stamp() != before


async def test_those_not_seen_for_longest_go(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprints, "MOST", 3)
    await registry.footprints.keep([record(str(number), seen=float(number)) for number in range(5)])
    assert set(await kept(registry)) == {"2", "3", "4"}
    await registry.footprints.keep([record("0", seen=9.0)])
    assert set(await kept(registry)) == {"3", "4", "0"}
