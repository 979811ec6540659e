"""The registry's database: one engine, bounded in connections and in time, that comes back by itself.

Used by `registry` and `schema`. Whatever the database does wrong leaves here as RegistryUnavailable, without
statements, parameters or passwords in its text.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from modelyard.config.database import PATH as SETTING
from modelyard.config.database import without_password
from modelyard.errors import ConfigError, RegistryUnavailable

CONNECTIONS = 5
CONNECT = 3.0  # seconds, to open a connection
STATEMENT = 8.0  # and for a statement, a lock, or a place in the pool
WHOLE = 15.0  # and for all that one call does
_WRITES = "modelyard_writes"
_TRIES = 20

Sessions = Callable[[], AbstractAsyncContextManager[AsyncSession]]
"""Makes sessions that read, or those that write."""


class Database:
    """An engine for a URL, or for SQLite's file. Nothing is connected before the first use. Raises
    ConfigError for a URL that names no database of a known kind."""

    def __init__(self, url: str | Path) -> None:
        """`file` is SQLite's, None for PostgreSQL; `name` is for people, without a password."""
        self.file = _file(url)
        self.name = str(self.file or without_password(str(url)))
        self._url = str(url)
        self.engine = self._engine(STATEMENT)
        self._deadline = WHOLE
        self._inode = 0  # of SQLite's file, when it was used first
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session on one snapshot. Raises RegistryUnavailable."""
        self._check_file()
        with self._failures():
            async with asyncio.timeout(self._deadline), self._sessions.begin() as session:
                if self.file is None:
                    await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the end, or not at all. On SQLite it is the only one that writes
        from its first moment. Raises RegistryUnavailable; IntegrityError when a constraint says no."""
        self._check_file()
        with self._failures():
            async with asyncio.timeout(self._deadline), self._sessions.begin() as session:
                await session.connection(execution_options={_WRITES: True})
                yield session

    @asynccontextmanager
    async def connection(self, deadline: float, *, writes: bool = True) -> AsyncIterator[Any]:
        """A connection of its own, in a transaction, for migrations: each statement may take as long as all
        of them, apart from SQLite's wait for its lock. Raises RegistryUnavailable."""
        engine = self._engine(deadline)
        try:
            with self._failures():
                async with asyncio.timeout(deadline), engine.connect() as connection:
                    await connection.execution_options(**{_WRITES: writes})
                    async with connection.begin():
                        yield connection
        finally:
            await engine.dispose()

    async def close(self) -> None:
        await self.engine.dispose()

    def _check_file(self) -> None:
        """A file that was removed or replaced would go on taking what nobody finds again."""
        if self.file is None:
            return
        try:
            inode = self.file.stat().st_ino
        except OSError:
            inode = 0
        self._inode = self._inode or inode
        if inode != self._inode:
            raise RegistryUnavailable(
                f"{self.file} was removed or replaced while it was in use: put it back, or restart the server"
            )

    def _engine(self, statement: float) -> AsyncEngine:
        return _postgresql(self._url, statement) if self.file is None else _sqlite(self.file)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except TimeoutError as error:
            raise RegistryUnavailable(f"the registry's database ({self.name}) does not answer") from error
        except Exception as error:
            if not _is_of_database(error):
                raise
            raise RegistryUnavailable(
                f"the registry's database ({self.name}) cannot be used: {_reason(error)}"
            ) from error


def upsert(session: AsyncSession, table: type[Any]) -> Any:
    """An INSERT that knows ON CONFLICT, which both kinds of databases say in the same words."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


def _is_of_database(error: Exception) -> bool:
    """Some errors of a driver leave SQLAlchemy as they are: those of a connection that is being opened."""
    return isinstance(error, SQLAlchemyError | OSError) or type(error).__module__.startswith("asyncpg.")


def _reason(error: Exception) -> str:
    """One line. Only the driver's own words: SQLAlchemy adds the statement."""
    told = getattr(error, "orig", None) or error
    return (str(told).strip() or type(told).__name__).splitlines()[0]


def _file(url: str | Path) -> Path | None:
    if isinstance(url, Path):
        return url
    kind, _, place = url.partition("://")
    if kind == "sqlite" and place.startswith("/") and place not in {"/", "/:memory:"}:
        return Path(place[1:])
    if kind in {"postgresql", "postgres"}:
        return None
    raise ConfigError(SETTING, "is neither sqlite:////PATH nor postgresql://USER:PASSWORD@HOST/DATABASE")


_COMMON: dict[str, Any] = {
    "pool_size": CONNECTIONS,
    "max_overflow": 0,
    "hide_parameters": True,
    "json_serializer": functools.partial(json.dumps, allow_nan=False, ensure_ascii=True),
}


def _postgresql(url: str, statement: float) -> AsyncEngine:
    settings = {
        "application_name": "modelyard",
        "statement_timeout": _milliseconds(statement),
        "lock_timeout": _milliseconds(statement),
        "idle_in_transaction_session_timeout": _milliseconds(2 * max(statement, WHOLE)),
    }

    async def connect() -> Any:
        """The driver reads the URL itself, and knows what libpq does: sslmode, several hosts …"""
        driver = importlib.import_module("asyncpg")
        try:
            return await driver.connect(
                url, timeout=CONNECT, command_timeout=statement, server_settings=settings
            )
        except ValueError:  # its text may hold a part of the password
            raise ConfigError(
                SETTING, "cannot be read; write `/`, `@`, `#`, `?` and `%` in a password as %2F, %40, %23 …"
            ) from None

    try:
        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            pool_timeout=statement,
            pool_pre_ping=True,
            pool_recycle=1800,
            **_COMMON,
        )
    except ImportError:
        raise ConfigError(SETTING, "needs the extra `postgres`: pip install modelyard[postgres]") from None


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


# -- SQLite ---------------------------------------------------------------------------------------------


class _Connection(sqlite3.Connection):
    """A connection whose caller went away is closed in its transaction. SQLite would keep its locks then for
    as long as any cursor is left, as in the traceback of a cancellation."""

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


def _sqlite(file: Path) -> AsyncEngine:
    url = URL.create("sqlite+aiosqlite", database=str(file))
    arguments = {"factory": _Connection, "timeout": STATEMENT}  # for locks; nothing can end such a wait
    engine = create_async_engine(url, pool_timeout=STATEMENT, connect_args=arguments, **_COMMON)
    event.listen(engine.sync_engine, "do_connect", _private_file)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _private_file(_dialect: object, _record: object, arguments: list[Any], _options: object) -> None:
    """A new file is its owner's alone: specs may hold secrets. One that is there is not opened but by SQLite:
    whoever closes a file gives up all locks that its process has on it."""
    Path(arguments[0]).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours
    cursor = connection.cursor()
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Of several that switch a new file at one moment, SQLite refuses some without any wait: those wait for
    the others as for a lock, and look again."""
    for again in range(_TRIES, -1, -1):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not again or "locked" not in str(error):
                raise
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute("ROLLBACK")


def _begin_sqlite(connection: Connection) -> None:
    """Who will write says so first: of two that both have read and then want to write, one would fail."""
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
