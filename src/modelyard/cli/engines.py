"""`modelyard engine ls|put|rm`: engine profiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect, print_json
from modelyard.cli.registry import fields_in

app = typer.Typer(name="engine", help="Engine profiles: ls, put, rm.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the profile, which models name as `engine`.")]


@app.command("ls")
def listed(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """List the engine profiles, the file's and the registry's."""
    with connect(url, key) as client:
        found = client.call("GET", "/v1/engines")["data"]
    if as_json:
        print_json(found)
        return
    from modelyard.cli import tables

    table = tables.new("profile", "engine", "verified", "owner", "devices", "models", "program")
    for one in found:
        devices = ", ".join(one["devices"]) or "any"
        program = one["program"] or "not found"
        row = (one["name"], one["type"], one["verified"], one["owner"], devices, str(one["models"]), program)
        table.add_row(*row)
    tables.show(tables.console(), table)
    for one in found:
        if one["error"]:
            typer.echo(f"{one['name']} is left out there: {one['error']}")
        elif one["missing"]:
            typer.echo(f"{one['name']} cannot be run there: it {one['missing']}")


@app.command()
def put(
    name: Name,
    file: Annotated[
        Path, typer.Option("-f", "--file", help="Its fields, as under `engines:` (YAML or JSON); - is stdin.")
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Make or change a profile of the registry, as a whole."""
    fields = fields_in(file)
    with connect(url, key) as client:
        made = client.call("PUT", _path(name), fields)
    typer.echo(f"{name} is a profile of {made['type']}; {made['models']} models are run with it")


@app.command()
def rm(name: Name, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Remove a profile of the registry that no model uses."""
    with connect(url, key) as client:
        client.call("DELETE", _path(name))
    typer.echo(f"{name} is gone")


def _path(name: str) -> str:
    return f"/v1/engines/{quote(name, safe='/')}"
