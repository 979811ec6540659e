"""`modelyard cache ls|verify|prune`: the model files on this machine.

A server that answers is asked. Where none does, the folder is worked on: what another process has in use is
locked, so that this is safe beside it, and what policies keep is told by the configuration and its registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, connect, print_json
from modelyard.errors import ConfigError, RegistryUnavailable, ServerUnreachable

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.config import Config
    from modelyard.store import Store

Json = dict[str, Any]

app = typer.Typer(name="cache", help="Model files on this machine: ls, verify, prune.", no_args_is_help=True)
Server = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="MODELYARD_URL",
        help="The server; else that of the configuration, and the folder itself where none answers.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("-c", "--config", help="The configuration; else the default data folder.")
]


@app.command()
def ls(url: Server = None, key: Key = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the files: how large, used when, by which models."""
    found = _done(url, key, config, lambda client: dict(client.call("GET", "/admin/cache")), _listed)
    if as_json:
        print_json(found)
        return
    from modelyard.cli import cache_tables, tables

    cache_tables.print_listing(tables.console(), found)


@app.command()
def verify(
    url: Server = None,
    key: Key = None,
    config: ConfigFile = None,
    rate: Annotated[str, typer.Option(help="Read so much a second, at most.")] = "256MiB",
    as_json: AsJson = False,
) -> None:
    """Read all files again; what is not what it was is set aside. Exit code 1 where that is so."""
    bound = _size(rate)
    found = _done(
        url,
        key,
        config,
        lambda client: _asked_to_verify(client, bound),
        lambda store: _verified(store, bound),
    )
    if as_json:
        print_json(found)
    else:
        from modelyard.cli import cache_tables, tables

        cache_tables.print_verified(tables.console(), found)
    if found["bad"]:
        raise typer.Exit(1)


@app.command()
def prune(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]…", help="Sources, paths, digests or models.")
    ] = None,
    older: Annotated[str | None, typer.Option(help="Those that nobody used for so long: 30d, 12h.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are not in use.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    url: Server = None,
    key: Key = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Remove files from the cache, never what is in use.

    Their sources are forgotten: they may stand for other bytes from then on.
    """
    order: Json = {"files": list(files or ()), "all": everything, "dry_run": dry_run}
    if older is not None:
        order["older"] = _duration(older)
    found = _done(
        url,
        key,
        config,
        lambda client: dict(client.call("POST", "/admin/cache/prune", order)),
        lambda store: _pruned(store, order),
    )
    if as_json:
        print_json(found)
        return
    from modelyard.cli import cache_tables, tables

    cache_tables.print_pruned(tables.console(), found)


def _done(
    url: str | None,
    key: str | None,
    path: Path | None,
    ask: Callable[[Client], Json],
    work: Callable[[Store], Json],
) -> Json:
    """What `ask` makes of a server, if one answers; else what `work` makes of the folder. Raises
    ServerUnreachable where a server was named."""
    from modelyard.config import load

    config = load(path)
    with connect(url or (_address(config) if path else DEFAULT_URL), key) as client:
        try:
            client.call("GET", "/health")
        except ServerUnreachable:
            if url is not None:
                raise
        else:
            return ask(client)
    with _opened(config) as store:
        return work(store)


def _listed(store: Store) -> Json:
    from modelyard.store import report

    return report.listing(store)


def _asked_to_verify(client: Client, rate: int) -> Json:
    from rich.console import Console

    from modelyard.cli.registry_tables import Following

    begun: Json = client.call("POST", "/admin/cache/verify", {"rate": rate})
    last = begun
    with Following(Console(stderr=True, highlight=False)) as shown:
        for last in client.follow(begun):
            shown.update(last)
    return dict(last["result"])


def _verified(store: Store, rate: int) -> Json:
    import asyncio

    from modelyard.store import report
    from modelyard.store.verify import Verdict, verify

    async def all_of_them() -> list[Verdict]:
        return [verdict async for verdict in verify(store, rate=rate)]

    return report.verified(asyncio.run(all_of_them()))


def _pruned(store: Store, order: Json) -> Json:
    from modelyard.store import report

    wanted = report.Prune(tuple(order["files"]), order.get("older"), order["all"], order["dry_run"])
    return report.prune(store, wanted)


def _address(config: Config) -> str:
    server = config.server
    if server.unix is not None:
        return f"unix:{server.unix}"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


@contextmanager
def _opened(config: Config) -> Iterator[Store]:
    """The store in a configuration's data folder, with what the policies of models keep."""
    import asyncio

    from modelyard.compose.kept import kept_files
    from modelyard.store import Store

    root = config.server.data_dir / "store"
    if not root.is_dir():
        raise ConfigError(
            "", f"there is no cache in {config.server.data_dir}; name its configuration with -c"
        )
    try:
        store = Store(root, quota=config.store.quota)
    except OSError as error:
        raise ConfigError("", f"{root} cannot be used: {error.strerror or error}") from error
    with closing(store):
        try:
            kept = asyncio.run(kept_files(config, store))
        except (RegistryUnavailable, ConfigError) as error:
            typer.echo(f"modelyard: {error}; so every file that a source stands for is kept", err=True)
            kept = {item.path for item in store.shelf.items() if item.sources and item.unfinished is None}
        store.shelf.kept = lambda: kept
        yield store


def _size(text: str) -> int:
    from modelyard.config import parse_size

    try:
        return max(2**10, parse_size(text))
    except ValueError as error:
        raise typer.BadParameter(f"--rate {text}: {error}") from None


def _duration(text: str) -> float:
    from modelyard.config import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"--older {text}: {error}") from None
    if not isfinite(seconds):
        raise typer.BadParameter(f"--older {text}: must have a bound")
    return seconds
