"""The registry's database: one engine, bounded in connections and in time, that comes back by itself.

Used by `registry` and `schema`. Whatever the database does wrong leaves here as RegistryUnavailable, without
statements, parameters or passwords in its text.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from modelyard.config.database import PATH as SETTING
from modelyard.config.database import without_password
from modelyard.errors import ConfigError, RegistryUnavailable

CONNECTIONS = 5
CONNECT = 3.0  # seconds, to open a connection
STATEMENT = 8.0  # and for a statement, a lock, or a place in the pool
WHOLE = 15.0  # and for all that one call does
_WRITES = "modelyard_writes"


class Database:
    """An engine for a URL, or for SQLite's file. Nothing is connected before the first use. Raises
    ConfigError for a URL that names no database of a known kind."""

    def __init__(self, url: str | Path, *, deadline: float = WHOLE) -> None:
        self.url = _url(url)
        self._deadline = deadline
        self.engine = _engine(self.url)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def file(self) -> Path:
        """SQLite's file."""
        assert self.is_sqlite
        assert self.url.database is not None
        return Path(self.url.database)

    @property
    def name(self) -> str:
        """The database for people, without a password."""
        if self.is_sqlite:
            return str(self.file)
        return without_password(self.url.set(drivername="postgresql").render_as_string(hide_password=False))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session on one snapshot. Raises RegistryUnavailable."""
        with self._failures():
            async with asyncio.timeout(self._deadline), self._sessions.begin() as session:
                if not self.is_sqlite:
                    await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the end, or not at all. On SQLite it is the only one that writes
        from its first moment. Raises RegistryUnavailable; IntegrityError when a constraint says no."""
        with self._failures():
            async with asyncio.timeout(self._deadline), self._sessions.begin() as session:
                await session.connection(execution_options={_WRITES: True})
                yield session

    @asynccontextmanager
    async def connection(self, deadline: float) -> AsyncIterator[Any]:
        """A connection in a transaction that writes, for migrations. Raises RegistryUnavailable."""
        with self._failures():
            async with asyncio.timeout(deadline), self.engine.connect() as connection:
                await connection.execution_options(**{_WRITES: True})
                async with connection.begin():
                    yield connection

    async def close(self) -> None:
        await self.engine.dispose()

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


def _is_of_database(error: Exception) -> bool:
    """Some errors of a driver leave SQLAlchemy as they are: those of a connection that is being opened."""
    return isinstance(error, SQLAlchemyError | OSError) or type(error).__module__.startswith("asyncpg.")


def _reason(error: Exception) -> str:
    """One line. Only the driver's own words: SQLAlchemy adds the statement."""
    told = getattr(error, "orig", None) or error
    return (str(told).strip() or type(told).__name__).splitlines()[0]


def _url(text: str | Path) -> URL:
    """The URL with its asynchronous driver; `sslmode` is called `ssl` there."""
    if isinstance(text, Path):
        return URL.create("sqlite+aiosqlite", database=str(text))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # neither may repeat the text: it may hold a password
        raise ConfigError(SETTING, "is not a URL: sqlite:////PATH or postgresql://USER@HOST/NAME") from None
    kind = url.drivername.partition("+")[0]
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigError(SETTING, "needs a file: sqlite:////PATH")
        return url.set(drivername="sqlite+aiosqlite")
    if kind in {"postgresql", "postgres"}:
        query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
        return url.set(drivername="postgresql+asyncpg", query=query)
    raise ConfigError(SETTING, f"'{kind}' is no database that is known here (sqlite, postgresql)")


def _engine(url: URL) -> AsyncEngine:
    common: dict[str, Any] = {
        "pool_size": CONNECTIONS,
        "max_overflow": 0,
        "pool_timeout": STATEMENT,
        "hide_parameters": True,
        "json_serializer": functools.partial(json.dumps, allow_nan=False, ensure_ascii=True),
    }
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, connect_args={"timeout": STATEMENT}, **common)
        event.listen(engine.sync_engine, "do_connect", _private_file)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    milliseconds = str(int(STATEMENT * 1000))
    settings = {
        "application_name": "modelyard",
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": str(int(WHOLE * 2000)),
    }
    arguments = {"timeout": CONNECT, "command_timeout": STATEMENT, "server_settings": settings}
    try:
        return create_async_engine(
            url, connect_args=arguments, pool_pre_ping=True, pool_recycle=1800, **common
        )
    except (ImportError, NoSuchModuleError):
        raise ConfigError(SETTING, "needs the extra `postgres`: pip install modelyard[postgres]") from None


# -- SQLite ---------------------------------------------------------------------------------------------


def _private_file(_dialect: object, _record: object, arguments: list[Any], _options: object) -> None:
    """A new file is its owner's alone: specs may hold secrets."""
    Path(arguments[0]).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(arguments[0], os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {int(STATEMENT * 1000)}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Who will write says so first: of two that both have read and then want to write, one would fail."""
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
