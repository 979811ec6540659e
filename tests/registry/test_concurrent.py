"""Changes at the same time, from several servers on one database: one wins, and nothing is half of two."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelNotFound, NameTaken, RevisionMismatch
from modelyard.registry import Registry
from registry.making import new_version, register

SERVERS = 4


@pytest.fixture
async def servers(url: str) -> AsyncIterator[list[Registry]]:
    found = [Registry(url) for _ in range(SERVERS)]
    await asyncio.gather(*(server.open() for server in found))
    yield found
    await asyncio.gather(*(server.close() for server in found))


async def outcomes(*changes: Awaitable[Any]) -> tuple[list[Any], list[BaseException]]:
    """What came of changes made at once, and what was raised."""
    results = await asyncio.gather(*changes, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    return [result for result in results if not isinstance(result, BaseException)], failed


async def test_who_finds_a_new_file_locked_waits(tmp_path: Path) -> None:
    """As when several servers begin one at the same moment; SQLite itself would not wait here."""
    file = tmp_path / "registry.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as first:
        first.execute("CREATE TABLE other (id)")
        first.execute("BEGIN IMMEDIATE")
        registry = Registry(file)
        opening = asyncio.create_task(registry.open())
        await asyncio.wait([opening], timeout=0.5)
        assert not opening.done()
        first.execute("ROLLBACK")
    assert (await opening).before == "base"
    await registry.close()


async def test_of_those_who_read_one_revision_one_wins(servers: list[Registry]) -> None:
    revision = (await register(servers[0], "a")).revision
    for _ in range(5):
        won, lost = await outcomes(
            *(
                server.update("a", who=f"{index}", policy={"by": index}, match=revision)
                for index, server in enumerate(servers * 2)
            )
        )
        assert len(won) == 1
        assert {type(error) for error in lost} == {RevisionMismatch}
        assert won[0] == await servers[0].get("a")
        revision += 1
        assert won[0].revision == revision
    assert len(await servers[0].policies("a")) == 6
    assert len(await servers[0].audit("a")) == 6


async def test_a_change_that_names_no_revision_is_never_lost(servers: list[Registry]) -> None:
    await register(servers[0], "a")
    many = servers * 3
    won, lost = await outcomes(
        *(server.add_version("a", new_version(f"{index}"), who="ada") for index, server in enumerate(many))
    )
    assert lost == []
    assert sorted(added.version.number for added in won) == list(range(2, len(many) + 2))
    assert (await servers[0].get("a")).revision == len(many) + 1


async def test_one_digest_makes_one_version(servers: list[Registry]) -> None:
    await register(servers[0], "a")
    won, lost = await outcomes(*(server.add_version("a", new_version("b"), who="ada") for server in servers))
    assert lost == []
    assert [added.created for added in won].count(True) == 1
    assert all(added.version == won[0].version for added in won)


async def test_a_name_is_given_once(servers: list[Registry]) -> None:
    won, lost = await outcomes(*(register(server, "a", aliases=["b", "c"]) for server in servers))
    assert len(won) == 1
    assert {type(error) for error in lost} == {NameTaken}
    won, lost = await outcomes(
        *(
            register(server, f"m{index}", aliases=["x", "y"] if index % 2 else ["y", "x"])
            for index, server in enumerate(servers)
        )
    )
    assert len(won) == 1
    assert {type(error) for error in lost} == {NameTaken}
    assert len((await servers[0].all()).models) == 2


async def test_a_model_is_deleted_once(servers: list[Registry]) -> None:
    await register(servers[0], "a")
    won, lost = await outcomes(*(server.delete("a", who="ada") for server in servers))
    assert len(won) == 1
    assert {type(error) for error in lost} == {ModelNotFound}


async def test_a_catalog_is_of_one_moment(servers: list[Registry]) -> None:
    """A model's policy, alias and tag are changed in turns; no reader sees one without the other."""
    writer, *readers = servers
    await register(writer, "a", policy={"turn": "0"}, aliases=["alias-0"])
    done = asyncio.Event()

    async def write() -> None:
        for turn in range(1, 30):
            await writer.update("a", who="ada", policy={"turn": f"{turn}"}, aliases=[f"alias-{turn}"])
        done.set()

    async def read(reader: Registry) -> None:
        while not done.is_set():
            model = (await reader.all()).models[0]
            turn = model.policy["turn"]
            assert (model.aliases, model.revision) == ((f"alias-{turn}",), int(str(turn)) + 1)

    await asyncio.gather(write(), *(read(reader) for reader in readers))


async def test_stamps_miss_no_change(servers: list[Registry]) -> None:
    """Whoever has read up to a stamp finds every change that was committed until then."""
    for index in range(SERVERS):
        await register(servers[0], f"m{index}")
    seen: list[int] = []
    done = asyncio.Event()

    async def write(index: int) -> None:
        for turn in range(10):
            await servers[index].update(f"m{index}", who="ada", description=f"{turn}")

    async def watch() -> None:
        stamp = await servers[0].stamp()
        while not done.is_set():
            entries = await servers[0].audit(limit=1000)
            fresh = sorted(entry.id for entry in entries if entry.id > stamp)
            seen.extend(fresh)
            stamp = fresh[-1] if fresh else stamp

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(write(index) for index in range(SERVERS)))
    last = await servers[0].stamp()
    while not seen or seen[-1] < last:
        await asyncio.sleep(0)
    done.set()
    await watching
    assert len(seen) == SERVERS * 10
