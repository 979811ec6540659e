"""`modelyard diff` and `apply`: what another configuration changes, as a table or JSON, and changing it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from modelyard.cli import tables
from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect
from modelyard.cli.plan import print_steps

Json = Mapping[str, Any]

STYLES = {"added": "green", "removed": "red", "replaced": "yellow"}
ConfigFile = Annotated[
    Path | None,
    typer.Option("-f", "--file", help="On the server's machine; else the file that is served, read again."),
]


def diff(file: ConfigFile = None, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show what `apply` would change; change nothing."""
    _order(file, url, key, as_json, dry_run=True)


def apply(file: ConfigFile = None, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Have the server serve another configuration, without a restart: all of it, or nothing."""
    _order(file, url, key, as_json, dry_run=False)


def _order(file: Path | None, url: str, key: str | None, as_json: bool, *, dry_run: bool) -> None:
    with connect(url, key) as client:
        change = client.apply(file.absolute() if file is not None else None, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(change, indent=2, ensure_ascii=False))
    else:
        print_change(tables.console(), change)


def print_change(where: Console, change: Json) -> None:
    """What becomes of each model, then every other setting."""
    if not change["models"] and not change["settings"]:
        where.print(escape(f"{change['source']} says what is served already."), soft_wrap=True)
        return
    table = tables.new("what", "change", prose=("from → to",))
    for model in change["models"]:
        kind = model["kind"]
        style = STYLES.get(kind)
        table.add_row(escape(model["model"]), f"[{style}]{kind}[/]" if style else kind, _fields(model))
    for setting in change["settings"]:
        table.add_row(escape(setting["path"]), "set", escape(_values(setting)))
    tables.show(where, table)
    if change["plan"] is not None:
        print_steps(where, change["plan"])
    done = "is served now" if change["applied"] else "is not served yet; `modelyard apply` does that"
    where.print(escape(f"{change['source']} {done}."), soft_wrap=True)


def _fields(model: Json) -> str:
    lines = [f"{field['path']}: {_values(field)}" for field in model["fields"]]
    if model["running"]:
        lines.append(f"{model['running']} running finish on what goes")
    return escape("\n".join(lines))


def _values(field: Json) -> str:
    return f"{_value(field['before'])} → {_value(field['after'])}"


def _value(value: object) -> str:
    """As it would be written."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return ", ".join(_value(item) for item in value) or "-"
    return str(value)
