"""The schema: made, brought up and down, refused when it is newer, whole whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from modelyard.errors import ConfigError, RegistryUnavailable
from modelyard.registry import Registry, schema
from modelyard.registry.database import Database
from modelyard.registry.tables import Base
from registry import dying
from registry.making import register

OURS = schema.MIGRATIONS
NEXT = '''"""one more column"""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{last}"


def upgrade() -> None:
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
    op.add_column("models", sa.Column("note", sa.Text(), nullable=False, server_default="none"))


def downgrade() -> None:
    op.drop_column("models", "note")
    op.drop_table("later")
'''


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    found = Database(url)
    yield found
    await found.close()


@pytest.fixture
def next_migrations(tmp_path: Path) -> Path:
    """The migrations of a program that is one revision ahead."""
    folder = tmp_path / "migrations"
    shutil.copytree(OURS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "rev_9999.py").write_text(NEXT.format(last=schema.head()))
    return folder


async def current(database: Database) -> str:
    applied = [one.name for one in await schema.show(database) if one.applied]
    return applied[-1] if applied else schema.EMPTY


async def test_the_migrations_make_the_tables(database: Database) -> None:
    await schema.migrate(database)

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    async with database.connection(10) as connection:
        assert await connection.run_sync(differences) == []


async def test_up_and_down_keep_what_is_there(
    url: str, database: Database, next_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(url)
    assert await registry.open() == schema.Migrated("base", schema.head())
    made = await register(registry, "a", "chat", aliases=["b"])
    ours = schema.head()
    monkeypatch.setattr(schema, "MIGRATIONS", next_migrations)
    done = await schema.migrate(database)
    assert (done.before, done.after) == (ours, "9999")
    assert await registry.get("b") == made
    done = await schema.migrate(database, ours)
    assert (done.before, done.after) == ("9999", ours)
    assert await registry.get("b") == made
    monkeypatch.undo()
    assert (await schema.migrate(database)).before == ours
    await schema.migrate(database, schema.EMPTY)
    assert await current(database) == schema.EMPTY
    await registry.close()


async def test_a_newer_schema_is_refused(
    url: str, database: Database, next_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = schema.head()
    monkeypatch.setattr(schema, "MIGRATIONS", next_migrations)
    await schema.migrate(database)
    monkeypatch.undo()
    registry = Registry(url)
    told = f"has schema 9999, and this program knows none above {ours}: .*`modelyard migrate down {ours}`"
    with pytest.raises(ConfigError, match=told):
        await registry.open()
    with pytest.raises(ConfigError, match=told):
        await register(registry, "a")
    with pytest.raises(ConfigError, match=told):
        await schema.migrate(database, schema.EMPTY)
    shown = await schema.show(database)
    assert [(one.name, one.applied) for one in shown][-1] == ("9999", True)
    monkeypatch.setattr(schema, "MIGRATIONS", next_migrations)
    await schema.migrate(database, ours)
    monkeypatch.undo()
    await register(registry, "a")
    await registry.close()


async def test_to_look_waits_for_nobody(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.registry.database.STATEMENT", 0.1)  # that SQLite waits for a lock
    registry = Registry(url)
    assert not await registry.is_made()
    if database.file:
        assert not database.file.exists()
    made = await schema.migrate(database)
    async with database.writing() as session:
        await session.execute(text("UPDATE settings SET value = 'other'"))
        assert await registry.is_made()
        assert all(one.applied for one in await schema.show(database))
        assert await registry.open() == schema.Migrated(made.after, made.after)
        assert await registry.stamp() == 0
    before = [one.name for one in await schema.show(database)][-2]
    await schema.migrate(database, before)
    with pytest.raises(RegistryUnavailable, match="has an older schema; `modelyard migrate up`"):
        await registry.is_made()
    await registry.close()


async def test_servers_that_start_together_migrate_once(url: str) -> None:
    servers = [Registry(url) for _ in range(6)]
    done = await asyncio.gather(*(server.open() for server in servers))
    assert [one for one in done if one.before != one.after] == [schema.Migrated("base", schema.head())]
    assert len({await server.digest_key() for server in servers}) == 1
    for server in servers:
        await server.close()


@pytest.mark.parametrize("text", ["CREATE TABLE models", "CREATE TABLE audit", "INTO alembic_version"])
async def test_a_first_migration_that_is_killed_leaves_nothing(
    url: str, database: Database, text: str
) -> None:
    _kill_in_migration(url, OURS, text)
    assert await current(database) == schema.EMPTY
    registry = Registry(url)
    await register(registry, "a")
    assert [model.name for model in (await registry.all()).models] == ["a"]
    await registry.close()


@pytest.mark.parametrize("text", ["CREATE TABLE later", "ADD COLUMN note", "UPDATE alembic_version"])
async def test_an_upgrade_that_is_killed_leaves_the_schema_before(
    url: str, database: Database, text: str, next_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(url)
    made = await register(registry, "a")
    await registry.close()
    _kill_in_migration(url, next_migrations, text)
    assert await current(database) == schema.head()
    registry = Registry(url)
    assert await registry.get("a") == made
    monkeypatch.setattr(schema, "MIGRATIONS", next_migrations)
    await schema.migrate(database)
    assert await current(database) == "9999"
    assert await registry.get("a") == made
    await registry.close()


def _kill_in_migration(url: str, folder: Path, text: str) -> None:
    process = dying.start(url, "migrate", str(folder), text)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    dying.kill(process)


async def test_it_is_told_whether_a_server_has_it_open(
    url: str, registry: Registry, database: Database
) -> None:
    assert not await schema.is_used(database)
    await register(registry, "a")
    assert await schema.is_used(database)
    await register(registry, "b")
    await registry.close()
    async with asyncio.timeout(10):
        while await schema.is_used(database):  # PostgreSQL takes a moment
            await asyncio.sleep(0.01)
    assert await current(database) == schema.head()


# -- SQLite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["gone", "empty"])
async def test_a_new_registry_beside_copies_of_one_is_told(tmp_path: Path, lost: str) -> None:
    file = tmp_path / "registry.db"
    first = Registry(file)
    assert (await first.open()).copies == ()
    await first.close()
    database = Database(file)
    done = await schema.migrate(database, "0001")
    await database.close()
    file.unlink()
    if lost == "empty":
        file.touch()
    (tmp_path / "other.db.0001.backup").touch()
    again = Registry(file)
    assert (await again.open()).copies == (done.backup,)
    assert (await again.open()).copies == (done.backup,), "it was opened once"
    await again.close()
    later = Registry(file)
    assert (await later.open()).copies == ()
    await later.close()


async def test_sqlite_is_copied_before_it_is_changed(
    tmp_path: Path, next_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "registry.db"
    registry = Registry(file)
    await register(registry, "a")
    ours = schema.head()
    monkeypatch.setattr(schema, "MIGRATIONS", next_migrations)
    database = Database(file)
    done = await schema.migrate(database)
    assert done.backup == tmp_path / f"registry.db.{ours}.backup"
    assert (await schema.migrate(database)).backup is None
    for target in (ours, "9999", ours):
        await schema.migrate(database, target)
    copies = {f"registry.db.{name}.backup" for name in (ours, f"{ours}-1", "9999", "9999-1")}
    assert {path.name for path in tmp_path.glob("registry.db.*")} == copies  # none replaces another
    await database.close()
    await registry.close()
    assert (done.backup.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o600, 0o600)
    monkeypatch.undo()
    copy = Registry(done.backup)
    assert await copy.open() == schema.Migrated(ours, ours)
    assert [model.name for model in (await copy.all()).models] == ["a"]
    await copy.close()
    assert not list(tmp_path.glob("*.unfinished"))


async def test_sqlite_that_cannot_be_copied_is_not_changed(
    tmp_path: Path, next_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "registry.db")
    await schema.migrate(database)
    ours = schema.head()
    (tmp_path / "registry.db.unfinished").mkdir()
    monkeypatch.setattr(schema, "MIGRATIONS", next_migrations)
    with pytest.raises(RegistryUnavailable, match="is not changed, because it cannot be copied to"):
        await schema.migrate(database)
    assert await current(database) == ours
    assert not list(tmp_path.glob("*.backup"))
    await database.close()


async def test_a_file_of_the_user_is_not_taken_for_a_registry(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("these are notes, not a database\n" * 100)
    registry = Registry(file)
    with pytest.raises(RegistryUnavailable, match="file is not a database"):
        await registry.open()
    await registry.close()
    assert file.read_text().startswith("these are notes")


async def test_sqlite_is_in_the_mode_that_it_should_be(tmp_path: Path) -> None:
    database = Database(tmp_path / "deep" / "registry.db")
    async with database.connection(10) as connection:
        pragmas = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    await database.close()
    assert pragmas == ["wal", 2, 1, 8_000]
    with closing(sqlite3.connect(tmp_path / "deep" / "registry.db")) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
