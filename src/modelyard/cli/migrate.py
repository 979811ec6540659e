"""`modelyard migrate up|down|show`: the schema of the registry's database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from modelyard.registry.database import Database
    from modelyard.registry.schema import Migrated

T = TypeVar("T")

app = typer.Typer(name="migrate", help="The schema of the registry: up, down, show.", no_args_is_help=True)
ConfigFile = Annotated[
    Path | None, typer.Option("-c", "--config", help="The configuration; else the default data folder.")
]


@app.command()
def up(config: ConfigFile = None) -> None:
    """Bring it to the newest one, as `serve` does.

    SQLite's file is copied first.
    """
    _tell(_with_database(config, lambda database: _migrate(database, "head")))


@app.command()
def down(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="As `show` names it; `base`: no tables.")
    ],
    config: ConfigFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where it deletes what is kept: say so once you know what.")
    ] = False,
) -> None:
    """Go back to an earlier one, for an older program.

    What that has no tables for is deleted, which asks for --force and is named. While a server has the
    database open it is refused, also then.
    """
    _tell(_with_database(config, lambda database: _down(database, revision, force)))


@app.command()
def show(config: ConfigFile = None) -> None:
    """Show which revisions it has."""
    from modelyard.registry import schema

    async def read(database: Database) -> tuple[str, list[schema.Revision]]:
        return database.name, await schema.show(database)

    name, revisions = _with_database(config, read)
    typer.echo(name)
    for revision in revisions:
        typer.echo(f"{'*' if revision.applied else ' '} {revision.name}  {revision.about}")


async def _down(database: Database, revision: str, force: bool) -> tuple[str, Migrated]:
    from modelyard.errors import ConfigError
    from modelyard.registry import schema

    if await schema.is_used(database):
        raise ConfigError("", f"{database.name} is in use: stop every server that has it open")
    if not force and (lost := await schema.lost(database, revision)):
        raise ConfigError("", f"that deletes all {', '.join(lost)} of {database.name}; --force does it")
    return await _migrate(database, revision)


async def _migrate(database: Database, target: str) -> tuple[str, Migrated]:
    from modelyard.registry import schema

    return database.name, await schema.migrate(database, target)


def _tell(result: tuple[str, Migrated]) -> None:
    name, done = result
    if done.backup:
        typer.echo(f"copied to {done.backup}")
    typer.echo(
        f"{name}: {done.before} -> {done.after}" if done.before != done.after else f"{name} has {done.after}"
    )


def _with_database(config: Path | None, use: Callable[[Database], Awaitable[T]]) -> T:
    """What `use` returns for the configured database. Raises ConfigError, RegistryUnavailable."""
    import asyncio

    from modelyard.config import load
    from modelyard.registry.database import Database

    loaded = load(config)

    async def run() -> T:
        database = Database(loaded.registry_url)
        try:
            return await use(database)
        finally:
            await database.close()

    return asyncio.run(run())
