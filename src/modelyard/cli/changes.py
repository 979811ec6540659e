"""`modelyard diff` and `apply`: what another configuration changes, as a table or JSON, and changing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect, print_json

ConfigFile = Annotated[
    Path | None,
    typer.Option("-f", "--file", help="On the server's machine; else the file that is served, read again."),
]


def diff(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A registered model, to compare two versions of.")
    ] = None,
    one: Annotated[int | None, typer.Argument(metavar="FROM", min=1, help="The number of a version.")] = None,
    other: Annotated[int | None, typer.Argument(metavar="TO", min=1, help="Of another one.")] = None,
    file: ConfigFile = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what `apply` would change, or what differs between two versions; change nothing."""
    if model is None:
        _order(file, url, key, as_json, dry_run=True)
        return
    if one is None or other is None or file is not None:
        raise typer.BadParameter("name a model and two of its versions, or a file")
    with connect(url, key) as client:
        found = client.compare(model, one, other)
    if as_json:
        print_json(found)
    else:
        from modelyard.cli import registry_tables, tables

        registry_tables.print_comparison(tables.console(), found)


def apply(file: ConfigFile = None, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Have the server serve another configuration, without a restart: all of it, or nothing."""
    _order(file, url, key, as_json, dry_run=False)


def _order(file: Path | None, url: str, key: str | None, as_json: bool, *, dry_run: bool) -> None:
    with connect(url, key) as client:
        change = client.apply(file.absolute() if file is not None else None, dry_run=dry_run)
    if as_json:
        print_json(change)
    else:
        from modelyard.cli import plan_tables, tables

        plan_tables.print_change(tables.console(), change)
