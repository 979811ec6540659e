"""What serving teaches is kept in the registry: while its database is away, and by several servers."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.live_yard import LiveYard, fake, live_yard, short_folder
from modelyard.compose import keeping
from modelyard.errors import RegistryUnavailable
from modelyard.registry.usage import Wanted
from modelyard.telemetry.usage import Place, Sums
from registry.postgres import Postgres
from waiting import until


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept within a moment."""
    monkeypatch.setattr(keeping, "LOOK_EVERY", 0.05)


async def requests(yard: LiveYard) -> int:
    (found,) = await yard.yard.keeping._registry.usage.sums(Wanted())
    return found.sums.requests


def all_kept(yard: LiveYard) -> bool:
    return not yard.yard.keeping._rows and not yard.driver.footprints.changed()


def count(monkeypatch: pytest.MonkeyPatch, of: object, name: str) -> list[object]:
    """Grows with each call of this method."""
    method, calls = getattr(of, name), list[object]()

    def counted(*args: object, **named: object) -> object:
        calls.append(args)
        return method(*args, **named)

    monkeypatch.setattr(of, name, counted)
    return calls


class TestUsage:
    async def test_waits_while_the_database_is_away(self, postgres: Postgres) -> None:
        url = postgres.emptied()
        async with live_yard({"a": fake()}, registry={"database_url": url}) as yard:
            assert (await yard.chat("a")).status == 200
            await until(lambda: all_kept(yard))
            with capture_logs() as said:
                postgres.stop()
                try:
                    for _ in range(3):
                        assert (await yard.chat("a")).status == 200
                    await until(lambda: any(line["event"] == "usage.waits" for line in said))
                    assert (await yard.chat("a")).status == 200
                finally:
                    postgres.start()
                await until(lambda: any(line["event"] == "usage.kept_again" for line in said))
            told = [line["event"] for line in said if line["event"].startswith("usage")]
            assert told == ["usage.waits", "usage.kept_again"]
            await until(lambda: all_kept(yard))
            assert await requests(yard) == 5

    async def test_that_cannot_be_kept_is_told_by_health(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            with closing(sqlite3.connect(yard.yard.config.server.data_dir / "registry.db")) as other:
                other.execute("DROP TABLE usage")
            assert (await yard.chat("a")).status == 200
            await until(lambda: yard.yard.catalog.unkept)
            health = (await yard.http.get("/health")).json()
            assert (health["status"], "no such table" in health["registry"]) == ("degraded", True)
            assert (await yard.chat("a")).status == 200

    async def test_counts_once_though_the_answer_to_its_commit_is_lost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with live_yard({"a": fake()}) as yard:
            book = yard.yard.keeping._registry.usage
            add, batches = book.add, list[str]()

            async def lost(rows: Mapping[Place, Sums], *, server: str, batch: str) -> None:
                batches.append(batch)
                await add(rows, server=server, batch=batch)
                if len(batches) < 3:
                    raise RegistryUnavailable("the answer was lost")

            monkeypatch.setattr(book, "add", lost)
            assert (await yard.chat("a")).status == 200
            await until(lambda: len(batches) >= 3)
            assert len(set(batches[:3])) == 1
            await until(lambda: all_kept(yard))
            assert await requests(yard) == 1

    async def test_that_cannot_be_kept_at_the_end_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def away(rows: Mapping[Place, Sums], *, server: str, batch: str) -> None:
            raise RegistryUnavailable("away")

        async with live_yard({"a": fake()}) as yard:
            monkeypatch.setattr(yard.yard.keeping._registry.usage, "add", away)
            assert (await yard.chat("a")).status == 200
            with capture_logs() as said:
                await yard.yard.close()
        line = next(line for line in said if line["event"] == "usage.lost")
        assert (line["rows"], line["reason"]) == (1, "away")

    async def test_of_all_servers_decides_what_is_preloaded(self, folder: Path) -> None:
        registry = {"database_url": f"sqlite:///{folder}/shared.db"}
        models = {name: fake() for name in "abc"}
        async with live_yard(models, registry=registry) as yard:
            for name in "cbccbc":
                assert (await yard.chat(name)).status == 200
        async with live_yard(models, registry=registry, preload="auto") as yard:
            await until(lambda: yard.ready("c") is not None and yard.ready("b") is not None)
            assert [instance.id for instance in yard.state.instances.values()] == ["c-1", "b-2"]


class TestFootprints:
    async def test_of_a_server_are_there_for_one_without_its_disk(self, folder: Path) -> None:
        registry = {"database_url": f"sqlite:///{folder}/shared.db"}
        async with live_yard({"a": fake()}, registry=registry) as yard:
            await yard.load("a")
            await until(lambda: yard.driver.footprints._entries)
        learned = dict(yard.driver.footprints._entries)
        async with live_yard({"a": fake()}, registry=registry) as yard:
            assert yard.driver.footprints._entries == learned
            (version,) = yard.state.versions.values()
            assert version.load_seconds is not None, "estimates rest on it before the first load"

    async def test_reach_a_server_that_runs(self, folder: Path) -> None:
        registry = {"database_url": f"sqlite:///{folder}/shared.db"}
        async with (
            live_yard({"a": fake()}, registry=registry) as one,
            live_yard({"a": fake()}, registry=registry) as other,
        ):
            assert other.driver.footprints._entries == {}
            await one.load("a")
            await until(lambda: one.driver.footprints._entries)
            await until(lambda: other.driver.footprints._entries == one.driver.footprints._entries)
            (version,) = other.state.versions.values()
            assert version.load_seconds is not None

    async def test_go_on_from_memory_while_the_database_is_away(self, postgres: Postgres) -> None:
        url = postgres.emptied()
        async with live_yard({"a": fake()}, registry={"database_url": url}) as yard:
            postgres.stop()
            try:
                await yard.load("a")
                await until(lambda: yard.driver.footprints._entries)
            finally:
                postgres.start()
            await until(lambda: all_kept(yard))
        async with live_yard({"a": fake()}, registry={"database_url": url}) as other:
            assert other.driver.footprints._entries.keys() == yard.driver.footprints._entries.keys()

    async def test_of_a_server_are_not_read_again_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with live_yard({"a": fake()}) as yard:
            book, observer = yard.yard.keeping._registry.footprints, yard.driver.observer
            looks, reads = count(monkeypatch, book, "stamp"), count(monkeypatch, book, "all")
            await yard.load("a")
            await until(lambda: yard.driver.footprints._entries and all_kept(yard))
            looked = len(looks)
            await until(lambda: len(looks) > looked + 2)
            assert not reads
            recalls = count(monkeypatch, observer, "recall")
            yard.yard.keeping._stamp = None  # as if another server had kept what is known here
            await until(lambda: reads)
            looked = len(looks)
            await until(lambda: len(looks) > looked)
            assert not recalls, "nothing was later than what is known"
