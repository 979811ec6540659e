"""The schema of the database: which it has, which this program needs, and the way from one to the other.

Used by `Registry.open` and `modelyard migrate`. A migration is one transaction, also in SQLite: a program
that is killed in it leaves what was there before. Two that start together migrate once. SQLite's file is
copied before it is changed.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, text

from modelyard.config.database import PATH as SETTING
from modelyard.errors import ConfigError, RegistryUnavailable
from modelyard.registry.database import WHOLE, Database

DEADLINE = 300.0  # seconds, for a migration and the wait for another one
EMPTY = "base"
MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x6D6F64656C796172  # of PostgreSQL's advisory locks, one for all servers


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the schema, oldest first."""

    name: str
    about: str
    applied: bool


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did. `backup` is the copy of SQLite's file, where one was made; `copies` are earlier
    ones, where tables were made in an empty database: something was there before."""

    before: str
    after: str
    backup: Path | None = None
    copies: tuple[Path, ...] = ()


async def migrate(database: Database, target: str = "head") -> Migrated:
    """Bring the schema up or down to `target`: a revision, `head` or `base` (no tables at all).

    Raises ConfigError when the database has a revision that this program does not know, or the target is
    none; RegistryUnavailable.
    """
    wanted = _wanted(target)
    if await _look(database) == wanted:  # nobody is kept waiting for that
        return Migrated(wanted, wanted)
    async with database.connection(DEADLINE) as connection:
        if database.file is None:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        before = await connection.run_sync(_current)
        _refuse_newer(before, database)
        if before == wanted:
            return Migrated(before, before)
        backup, copies = None, tuple[Path, ...]()
        if database.file is not None and before != EMPTY:
            backup = await asyncio.to_thread(_copy, database.file, before)
        elif database.file is not None:
            copies = _copies(database.file)
        await connection.run_sync(_run, before, wanted)
    return Migrated(before, wanted, backup, copies)


async def is_used(database: Database) -> bool:
    """Whether somebody else has it open, as a server has as long as it runs. Raises RegistryUnavailable."""
    if database.file is not None:
        return await asyncio.to_thread(_is_open, database.file)
    async with database.connection(WHOLE, writes=False) as connection:
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
            "application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
        )
        return bool((await connection.execute(text(others))).scalar())


async def show(database: Database) -> list[Revision]:
    """All revisions that this program knows, oldest first; then one that only the database knows, if it has
    such. Waits for nobody who writes. Raises RegistryUnavailable."""
    current = await _look(database)
    names = [EMPTY, *_names()]
    newer = current not in names
    applied = names if newer else names[: names.index(current) + 1]
    found = [Revision(one.revision, one.doc, one.revision in applied) for one in _known()]
    return [*found, Revision(current, "made by a newer program", True)] if newer else found


async def _look(database: Database) -> str:
    """The revision that it has."""
    if database.file is not None and not database.file.exists():  # to look makes no file
        return EMPTY
    async with database.connection(WHOLE, writes=False) as connection:
        found: str = await connection.run_sync(_current)
        return found


async def lost(database: Database, target: str) -> list[str]:
    """What a migration to `target` would delete, for people. Raises as `migrate` does."""
    revisions = await show(database)
    _refuse_newer(revisions[-1].name, database)
    kept = [EMPTY, *_names()].index(_wanted(target))
    return [one.about.partition(";")[0] for one in revisions[kept:] if one.applied]


def head() -> str:
    """The newest revision that this program knows."""
    return _names()[-1]


def _known() -> list[Script]:
    return list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())[::-1]


def _names() -> list[str]:
    return [script.revision for script in _known()]


def _wanted(target: str) -> str:
    names = _names()
    if target == "head":
        return names[-1]
    if target not in {EMPTY, *names}:
        raise ConfigError("", f"there is no revision '{target}' (known: {', '.join([EMPTY, *names])})")
    return target


def _current(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or EMPTY


def _refuse_newer(current: str, database: Database) -> None:
    if current not in {EMPTY, *_names()}:
        raise ConfigError(
            SETTING,
            f"{database.name} has schema {current}, and this program knows none above {head()}: run the "
            f"newer program, or go back with its `modelyard migrate down {head()}`",
        )


def _run(connection: Connection, before: str, wanted: str) -> None:
    order = [EMPTY, *_names()]
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    change = command.upgrade if order.index(wanted) > order.index(before) else command.downgrade
    change(config, wanted)


def _is_open(file: Path) -> bool:
    """Whether SQLite's file has another connection: then nobody gets all of its locks."""
    if not file.exists():
        return False
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
    return False


def _copies(file: Path) -> tuple[Path, ...]:
    """The copies that lie beside it, the newest first."""
    beside = (path for path in file.parent.iterdir() if path.name.startswith(f"{file.name}."))
    found = (path for path in beside if path.suffix == ".backup")
    return tuple(sorted(found, key=lambda path: -path.stat().st_mtime))


def _copy(file: Path, revision: str) -> Path:
    """A copy of the file as it is now, with what its log still holds; whole under its name, or not there. No
    earlier copy is replaced."""
    names = chain([""], (f"-{number}" for number in count(1)))
    targets = (file.with_name(f"{file.name}.{revision}{name}.backup") for name in names)
    target = next(path for path in targets if not os.path.lexists(path))
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(unfinished)) as copy:
            source.backup(copy)
        _sync(unfinished)
        unfinished.replace(target)
        _sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise RegistryUnavailable(
            f"the registry's database is not changed, because it cannot be copied to {target}: {error}"
        ) from error
    return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
