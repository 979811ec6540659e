"""`modelyard cache ls|verify|prune`: the model files on this machine.

A server that answers is asked. Where none does, the folder is worked on: what another process has in use is
locked, so that this is safe beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, connect, print_json
from modelyard.errors import ConfigError, ServerUnreachable

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
    with _files(url, key, config) as files:
        found = files.listing()
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
    with _files(url, key, config) as files:
        found = files.verify(_size(rate))
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
    with _files(url, key, config) as chosen:
        found = chosen.prune(order)
    if as_json:
        print_json(found)
        return
    from modelyard.cli import cache_tables, tables

    cache_tables.print_pruned(tables.console(), found)


class _Files(Protocol):
    """Where the cache is worked on: through a server, or in its folder."""

    def listing(self) -> Json: ...

    def verify(self, rate: int) -> Json: ...

    def prune(self, order: Json) -> Json: ...


class _Remote:
    def __init__(self, client: Client) -> None:
        self._client = client

    def listing(self) -> Json:
        return dict(self._client.call("GET", "/admin/cache"))

    def verify(self, rate: int) -> Json:
        from rich.console import Console

        from modelyard.cli.registry_tables import Following

        begun: Json = self._client.call("POST", "/admin/cache/verify", {"rate": rate})
        last = begun
        with Following(Console(stderr=True, highlight=False)) as shown:
            for last in self._client.follow(begun):
                shown.update(last)
        return dict(last["result"])

    def prune(self, order: Json) -> Json:
        return dict(self._client.call("POST", "/admin/cache/prune", order))


class _Folder:
    def __init__(self, store: Store) -> None:
        self._store = store

    def listing(self) -> Json:
        from modelyard.store import report

        return report.listing(self._store)

    def verify(self, rate: int) -> Json:
        import asyncio

        from modelyard.store import report
        from modelyard.store.verify import Verdict, verify

        async def all_of_them() -> list[Verdict]:
            return [verdict async for verdict in verify(self._store, rate=rate)]

        return report.verified(asyncio.run(all_of_them()))

    def prune(self, order: Json) -> Json:
        from modelyard.store import report

        wanted = report.Prune(tuple(order["files"]), order.get("older"), order["all"], order["dry_run"])
        return report.prune(self._store, wanted)


@contextmanager
def _files(url: str | None, key: str | None, path: Path | None) -> Iterator[_Files]:
    """A server, if one answers; else the folder. Raises ServerUnreachable where a server was named."""
    from modelyard.config import load

    config = load(path)
    with connect(url or (_address(config) if path else DEFAULT_URL), key) as client:
        try:
            client.call("GET", "/health")
        except ServerUnreachable:
            if url is not None:
                raise
        else:
            yield _Remote(client)
            return
    with _opened(config) as store:
        yield _Folder(store)


def _address(config: Config) -> str:
    server = config.server
    if server.unix is not None:
        return f"unix:{server.unix}"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


def _opened(config: Config) -> AbstractContextManager[Store]:
    """The store in a configuration's data folder, with what its models' policies keep."""
    from modelyard.engines import registry
    from modelyard.store import Store

    root = config.server.data_dir / "store"
    if not root.is_dir():
        raise ConfigError(
            "", f"there is no cache in {config.server.data_dir}; name its configuration with -c"
        )
    engines = registry.load()
    kept = {
        source
        for model in config.models
        if model.policy.pin or model.policy.home or model.policy.min_replicas
        for source in engines[config.profiles[model.spec.engine].type].sources(model.spec).values()
    }
    try:
        store = Store(root, quota=config.store.quota)
    except OSError as error:
        raise ConfigError("", f"{root} cannot be used: {error.strerror or error}") from error
    store.shelf.kept = lambda: store.paths_of(kept)
    return closing(store)


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
