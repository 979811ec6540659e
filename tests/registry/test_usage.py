"""What was used, as it is kept in each database, by one server and by several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from modelyard.errors import InvalidRequest
from modelyard.registry import Registry
from modelyard.registry.tables import PairRow
from modelyard.registry.usage import BATCH_KEPT, DEMAND, KEPT, By, Wanted, batch_name
from modelyard.telemetry.usage import HOUR, Place, Sums

NOW = 1_800_000_000.0
THIS = int(NOW // HOUR)


@pytest.fixture
async def registry(url: str) -> AsyncIterator[Registry]:
    found = Registry(url, clock=lambda: NOW)
    yield found
    await found.close()


def place(hour: int = THIS, key: str = "k", model: str = "m", version: str = "m@1") -> Place:
    return hour, key, model, version


async def add(registry: Registry, rows: dict[Place, Sums], batch: str = "1", server: str = "one") -> None:
    await registry.usage.add(rows, server=server, batch=batch)


async def total(registry: Registry, **wanted: object) -> Sums:
    (one,) = await registry.usage.sums(Wanted(**wanted))  # type: ignore[arg-type]
    return one.sums


async def test_nothing_was_used_at_first(registry: Registry) -> None:
    assert await total(registry) == Sums()
    assert await registry.usage.sums(Wanted((By.MODEL,))) == []
    assert await registry.usage.demand() == {}


async def test_what_comes_is_added_to_what_is_there(registry: Registry, other: Registry) -> None:
    await add(registry, {place(): Sums(2, 1, 10, 2**40, 0.5, 0, 0.25)})
    await add(registry, {place(): Sums(1, 0, 1, 2, 0.25, 1, 0.5)}, batch="2")
    await add(other, {place(): Sums(1)}, server="two")
    assert await total(other) == Sums(4, 1, 11, 2**40 + 2, 0.75, 1, 0.75)


async def test_a_batch_whose_answer_was_lost_counts_once(registry: Registry) -> None:
    for _ in range(3):
        await add(registry, {place(): Sums(1), place(model="n"): Sums(1)})
    assert (await total(registry)).requests == 2
    await add(registry, {place(): Sums(1)}, server="two")
    await add(registry, {place(): Sums(1)}, batch="2")
    assert (await total(registry)).requests == 4


async def test_servers_that_add_at_one_moment_lose_nothing(registry: Registry, other: Registry) -> None:
    names = [f"m{number}" for number in range(40)]
    forth = {place(model=name): Sums(1, cost=0.5) for name in names}
    back = dict(reversed(forth.items()))
    await asyncio.gather(
        *(add(registry, forth, batch=str(n), server=f"a{n}") for n in range(8)),
        *(add(other, back, batch=str(n), server=f"b{n}") for n in range(8)),
    )
    found = await registry.usage.sums(Wanted((By.MODEL,)))
    assert [one.of for one in found] == [{By.MODEL: name} for name in sorted(names)]
    assert {(one.sums.requests, one.sums.cost) for one in found} == {(16, 8.0)}


async def test_rows_are_told_apart_by_what_is_asked(registry: Registry) -> None:
    await add(
        registry,
        {
            place(): Sums(1),
            place(hour=THIS - 1): Sums(2),
            place(key=""): Sums(4, loads=1),
            place(model="n", version="n@1"): Sums(8),
            place(version="m@2"): Sums(16),
        },
    )

    async def rows(*by: By, **wanted: object) -> list[tuple[object, ...]]:
        found = await registry.usage.sums(Wanted(by, **wanted))  # type: ignore[arg-type]
        return [(*one.of.values(), one.sums.requests) for one in found]

    assert await rows() == [(31,)]
    assert await rows(By.MODEL) == [("m", 23), ("n", 8)]
    assert await rows(By.VERSION) == [("m@1", 7), ("m@2", 16), ("n@1", 8)]
    assert await rows(By.KEY, By.MODEL) == [("", "m", 4), ("k", "m", 19), ("k", "n", 8)]
    assert await rows(By.HOUR) == [((THIS - 1) * HOUR, 2), (THIS * HOUR, 29)]
    assert await rows(By.MODEL, model="n") == [("n", 8)]
    assert await rows(By.KEY, key="") == [("", 4)]
    assert await rows(since=THIS * HOUR + 1.5) == [(29,)]
    assert await rows(until=THIS * HOUR) == [(2,)]
    assert await rows(until=THIS * HOUR + 0.5) == [(31,)]
    assert await rows(since=NOW + HOUR) == [(0,)]


@pytest.mark.parametrize("wanted", [Wanted(model="a\0"), Wanted(key="\ud800")])
async def test_what_can_be_no_name_is_refused(registry: Registry, wanted: Wanted) -> None:
    with pytest.raises(InvalidRequest):
        await registry.usage.sums(wanted)


async def test_rows_come_in_pages(registry: Registry) -> None:
    names = [f"m{number:02}" for number in range(25)]
    await add(registry, {place(model=name): Sums(1) for name in names})
    pages = [await registry.usage.sums(Wanted((By.MODEL,)), offset=at, limit=10) for at in (0, 10, 20)]
    assert [one.of[By.MODEL] for page in pages for one in page] == names


async def test_demand_halves_in_a_day(registry: Registry) -> None:
    await add(
        registry,
        {
            place(): Sums(3),
            place(key="l"): Sums(1),
            place(hour=THIS - 24): Sums(8),
            place(hour=THIS - 12, model="n"): Sums(4),
            place(hour=THIS - 2_000, model="old"): Sums(4),
        },
    )
    assert await registry.usage.demand() == {"m": pytest.approx(8), "n": pytest.approx(4 * 0.5**0.5)}


async def test_a_year_is_kept(registry: Registry) -> None:
    await add(registry, {place(hour=THIS - KEPT): Sums(1), place(hour=THIS - KEPT - 1): Sums(2)})
    await registry.usage.forget()
    assert (await total(registry)).requests == 1


async def test_the_marks_of_batches_do_not_grow_in_number(registry: Registry) -> None:
    old, young = batch_name(NOW - BATCH_KEPT - 1), batch_name(NOW - BATCH_KEPT + 1)
    await add(registry, {place(): Sums(1)}, server="old", batch=old)
    await add(registry, {place(): Sums(1)}, server="young", batch=young)
    await registry.usage.forget()
    await add(registry, {place(): Sums(1)}, server="young", batch=young)
    assert (await total(registry)).requests == 2
    await add(registry, {place(): Sums(1)}, server="old", batch=old)
    assert (await total(registry)).requests == 3, "its mark is gone"
    assert len(await registry.digest_key()) == 64, "other settings stay"


PAIRS = {(THIS, ("en", "fr", "")): 2, (THIS, ("en", "fr", "m")): 1}


async def test_pairs_are_added_up_and_their_demand_halves_in_a_day(
    registry: Registry, other: Registry
) -> None:
    for _ in range(3):
        await registry.usage.add_pairs(PAIRS, server="one", batch="1")
    await other.usage.add_pairs(
        {(THIS - 24, ("en", "fr", "")): 4, (THIS - 2_000, ("de", "en", "")): 9}, server="two", batch="1"
    )
    await add(registry, {place(): Sums(1)})
    assert await registry.usage.pairs() == {
        ("en", "fr", ""): pytest.approx(4.0),
        ("en", "fr", "m"): pytest.approx(1.0),
    }
    assert await registry.usage.demand() == {"m": 1.0}


async def test_old_pairs_are_forgotten(registry: Registry) -> None:
    rows = {(THIS - hours, ("en", "fr", "")): 1 for hours in (DEMAND - 1, DEMAND)}
    await registry.usage.add_pairs(rows, server="one", batch="1")
    await registry.usage.forget()
    await registry.usage.add_pairs({(THIS, ("de", "en", "")): 1}, server="one", batch="2")
    assert set(await registry.usage.pairs()) == {("en", "fr", ""), ("de", "en", "")}
    async with registry.usage._reading() as session:
        assert len((await session.execute(select(PairRow.hour))).all()) == 2
