"""`modelyard key add|ls|rm`: keys of the API."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect, print_json

app = typer.Typer(name="key", help="Keys of the API: add, ls, rm.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the key, for logs and limits.")]


@app.command()
def add(
    name: Name,
    scope: Annotated[
        list[str] | None, typer.Option(help="inference (the default) or admin; give both for both.")
    ] = None,
    max_priority: Annotated[str, typer.Option(help="The most that X-Priority may ask for.")] = "normal",
    expires: Annotated[str | None, typer.Option(help="After how long, such as 30d; else never.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print its secret, which is told this once.

    The first key needs the scope admin; from then on nobody comes in without one.
    """
    order = {
        "name": name,
        "scopes": scope or ["inference"],
        "max_priority": max_priority,
        "expires_in": expires,
    }
    with connect(url, key) as client:
        made = client.call("POST", "/v1/keys", order)
    if as_json:
        print_json(made)
    else:
        typer.echo(made["key"])


@app.command("ls")
def listed(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the keys, without their secrets."""
    with connect(url, key) as client:
        found = client.call("GET", "/v1/keys")["data"]
    if as_json:
        print_json(found)
        return
    from modelyard.cli import tables

    table = tables.new("key", "scopes", "max priority", "owner", "expires", "made by")
    for one in found:
        table.add_row(
            one["name"],
            " + ".join(one["scopes"]),
            one["max_priority"],
            one["owner"],
            _expires(one["expires"]),
            one["created_by"] or "-",
        )
    tables.show(tables.console(), table)


@app.command()
def rm(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Remove a key: it opens nothing from now on."""
    with connect(url, key) as client:
        client.call("DELETE", f"/v1/keys/{quote(name, safe='')}")
    typer.echo(f"{name} is gone")


def _expires(at: float | None) -> str:
    if at is None:
        return "never"
    from modelyard.cli.tables import duration

    left = at - time.time()
    return f"in {duration(left)}" if left > 0 else "expired"
