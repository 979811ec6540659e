"""Databases that go away, hang or fill up, and programs that are killed: a change is whole, or not made."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sized
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from modelyard.errors import ConfigError, RegistryUnavailable
from modelyard.registry import Registry, database, schema
from modelyard.registry import registry as registry_module
from registry import dying
from registry.making import new_version, register
from registry.postgres import Postgres
from waiting import until


@pytest.fixture
async def far(postgres: Postgres) -> AsyncIterator[Registry]:
    """A registry in PostgreSQL."""
    found = Registry(postgres.emptied())
    yield found
    await found.close()


async def works(registry: Registry) -> bool:
    try:
        await registry.stamp()
    except RegistryUnavailable:
        return False
    return True


# -- PostgreSQL -----------------------------------------------------------------------------------------


async def test_postgresql_goes_and_comes_back(postgres: Postgres, far: Registry) -> None:
    made = await register(far, "a")
    postgres.stop()
    try:
        started = time.monotonic()
        for change in (far.update("a", who="ada", description="new"), register(far, "b"), far.all()):
            with pytest.raises(
                RegistryUnavailable, match=r"postgresql://postgres@/postgres\) cannot be used"
            ):
                await change
        assert time.monotonic() - started < 5
    finally:
        postgres.start()
    await until(lambda: works(far))
    assert await far.get("a") == made
    assert (await far.update("a", who="ada", description="new")).revision == 2


async def test_a_restart_that_nobody_saw_fails_nothing(postgres: Postgres, far: Registry) -> None:
    await asyncio.gather(*(far.all() for _ in range(database.CONNECTIONS)))
    postgres.stop()
    postgres.start()
    await register(far, "a")
    await asyncio.gather(*(far.get("a") for _ in range(database.CONNECTIONS)))


async def test_a_server_may_start_before_its_database(postgres: Postgres) -> None:
    url = postgres.emptied()
    postgres.stop()
    registry = Registry(url)
    try:
        for _ in range(2):
            with pytest.raises(RegistryUnavailable):
                await registry.open()
    finally:
        postgres.start()
    await until(lambda: works(registry))
    await register(registry, "a")
    await registry.close()


async def test_what_was_acknowledged_outlives_restarts(postgres: Postgres, far: Registry) -> None:
    await register(far, "a")
    kept: list[int] = []
    failed: list[Exception] = []
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            try:
                kept.append((await far.update("a", who="ada", description="x")).revision)
            except RegistryUnavailable as error:
                failed.append(error)
                await asyncio.sleep(0.01)

    writers = [asyncio.ensure_future(write()) for _ in range(4)]
    for _ in range(2):
        await until(partial(_grows, kept, len(kept) + 5))
        await asyncio.to_thread(postgres.stop)
        await until(partial(_grows, failed, len(failed)))
        await asyncio.to_thread(postgres.start)
    await until(partial(_grows, kept, len(kept) + 5))
    stop.set()
    await asyncio.gather(*writers)
    assert len(set(kept)) == len(kept)
    log = [entry for entry in await far.audit("a", limit=1000) if entry.action == "update"]
    revision = (await far.get("a")).revision
    # A commit whose answer was lost is not in `kept`; nothing else may differ.
    assert len(log) == revision - 1
    assert max(kept) <= revision <= len(kept) + 1 + len(failed)


def _grows(items: Sized, beyond: int) -> bool:
    return len(items) > beyond


async def test_a_database_that_hangs_is_not_waited_for(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WHOLE", 1.0)
    registry = Registry(postgres.emptied())
    await register(registry, "a")
    postgres.freeze(True)
    try:
        started = time.monotonic()
        results = await asyncio.gather(
            *(registry.update("a", who="ada", description="x") for _ in range(20)), return_exceptions=True
        )
        assert {type(result) for result in results} == {RegistryUnavailable}
        assert "does not answer" in str(results[0])
        assert time.monotonic() - started < 5
    finally:
        postgres.freeze(False)
    await until(lambda: works(registry))
    await registry.update("a", who="ada", description="y")
    await registry.close()


async def test_a_password_is_in_no_text(tmp_path: Path) -> None:
    registry = Registry(f"postgresql://ada:s3cr@et@/yard?host={tmp_path}&options=s3cr")
    with pytest.raises(RegistryUnavailable) as caught:
        await registry.open()
    error: BaseException | None = caught.value
    assert "postgresql://ada:…@/yard" in str(error)
    while error is not None:
        assert "s3cr" not in str(error)
        error = error.__cause__
    assert "s3cr" not in registry.name
    await registry.close()


@pytest.mark.parametrize("url", ["postgresql://ada:s3#cret@/yard", "postgresql://ada:s3/cret@host/yard"])
async def test_a_password_that_breaks_its_url_is_not_repeated(url: str) -> None:
    registry = Registry(url)
    with pytest.raises(ConfigError, match=r"^registry.database_url: cannot be read; .* %23") as caught:
        await registry.open()
    assert "s3" not in str(caught.value)
    await registry.close()


@pytest.mark.parametrize("url", ["mysql://ada:s3cret@/yard", "sqlite://", "s3cret", "sqlite:///:memory:"])
def test_what_names_no_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^registry.database_url: ") as caught:
        Registry(url)
    assert "s3cret" not in str(caught.value)


# -- both -----------------------------------------------------------------------------------------------


async def test_a_caller_that_goes_away_leaves_nothing_behind(registry: Registry) -> None:
    await register(registry, "a")
    started = time.monotonic()
    for round_ in range(10):
        tasks = [
            asyncio.ensure_future(registry.update("a", who="ada", description=f"{round_}-{index}"))
            for index in range(2 * database.CONNECTIONS)
        ]
        await asyncio.sleep(random.uniform(0, 0.02))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    model = await registry.update("a", who="ada", description="last")
    assert time.monotonic() - started < database.STATEMENT  # nobody waited for a lock of who is gone
    log = await registry.audit("a", limit=1000)
    assert len(log) == model.revision


async def test_killed_while_it_registers(url: str) -> None:
    registry = Registry(url)
    await registry.open()
    kept: set[str] = set()
    for _ in range(3):
        process = dying.start(url, "register")
        assert process.stdout is not None
        for _ in range(random.randint(1, 15)):
            kept.add(process.stdout.readline().strip())
        kept.update(dying.kill(process))
        await registry.stamp()
    catalog = await registry.all()
    found = {model.name for model in catalog.models}
    assert kept <= found
    # At each kill one more may have been kept whose name was not printed yet.
    assert len(found) <= len(kept) + 3
    for model in catalog.models:
        assert model.aliases == (f"{model.name}-a", f"{model.name}-b")
        assert model.policy == {"of": model.name}
    assert {entry.model for entry in await registry.audit(limit=1000)} == found
    await registry.close()


@asynccontextmanager
async def migrating(url: str) -> AsyncIterator[None]:
    """Another server migrates."""
    holder = database.Database(url)
    async with holder.connection(30) as connection:
        if holder.file is None:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({schema._LOCK})"))
        yield
    await holder.close()


async def test_another_program_that_looks_takes_no_changes_away(tmp_path: Path) -> None:
    """Whoever closes SQLite's database and finds no lock of others takes its log away, with what it holds."""
    file = tmp_path / "registry.db"
    registry = Registry(file)
    await register(registry, "a")
    await asyncio.gather(*(registry.all() for _ in range(database.CONNECTIONS)))
    look = f"import sqlite3; c = sqlite3.connect({str(file)!r}); c.execute('SELECT * FROM models'); c.close()"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", look], check=True, timeout=30)
    await register(registry, "b")
    shutil.copytree(tmp_path, tmp_path / "killed")  # as it lies on the disk
    after = Registry(tmp_path / "killed" / "registry.db")
    assert [model.name for model in (await after.all()).models] == ["a", "b"]
    await after.close()
    await registry.close()


async def test_a_long_migration_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls fail while another server migrates, longer than a statement may take; and then they work."""
    monkeypatch.setattr(database, "STATEMENT", 0.2)
    monkeypatch.setattr(registry_module, "OPENING", 0.1)
    late = Registry(url)
    async with migrating(url):
        for _ in range(5):
            with pytest.raises(
                RegistryUnavailable, match=r"is being brought to this program's schema|locked"
            ):
                await late.stamp()
    await until(lambda: works(late))
    await register(late, "a")
    await late.close()


async def test_a_server_stops_while_it_waits_to_migrate(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT", 1.0)
    late, said = Registry(url), list[str]()

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        said.append(statement)

    async with migrating(url):
        event.listen(Engine, "before_cursor_execute", note)
        opening = asyncio.ensure_future(late.open())
        try:
            await until(lambda: any("BEGIN IMMEDIATE" in one or "advisory" in one for one in said))
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        assert not opening.done()
        await late.close()
        with pytest.raises(asyncio.CancelledError):
            await opening


# -- SQLite ---------------------------------------------------------------------------------------------


async def test_a_file_that_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT", 0.2)
    registry = Registry(tmp_path / "registry.db")
    made = await register(registry, "a")
    with closing(sqlite3.connect(tmp_path / "registry.db")) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnavailable, match="database is locked"):
            await registry.update("a", who="ada", description="new")
        assert await registry.get("a") == made
        holder.rollback()
    assert (await registry.update("a", who="ada", description="new")).revision == 2
    await registry.close()


async def test_a_full_disk(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    made = await register(registry, "a")
    full = True

    def fill(connection: Any, _record: object, _proxy: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {1 if full else 2**30}")  # it is never below what there is
        cursor.close()

    event.listen(registry._database.engine.sync_engine, "checkout", fill)
    large = {"text": "x" * 500_000}
    with pytest.raises(RegistryUnavailable, match="database or disk is full"):
        await registry.register("b", new_version("b"), who="ada", policy=large, aliases=["c"])
    with pytest.raises(RegistryUnavailable, match="database or disk is full"):
        await registry.update("a", who="ada", policy=large)
    assert (await registry.all()).models == (made,)
    full = False
    await registry.register("b", new_version("b"), who="ada", policy=large, aliases=["c"])
    await registry.close()


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    registry = Registry(tmp_path / "file" / "registry.db")
    with pytest.raises(RegistryUnavailable, match=r"file/registry.db\) cannot be used"):
        await registry.open()
    await registry.close()
