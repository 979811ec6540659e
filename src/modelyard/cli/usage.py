"""`modelyard usage`: what was asked of models, and what it cost."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect, print_json

if TYPE_CHECKING:
    from rich.console import Console


class By(StrEnum):
    """What rows are told apart by."""

    MODEL = "model"
    VERSION = "version"
    KEY = "key"
    HOUR = "hour"


def usage(
    by: Annotated[list[By] | None, typer.Option(help="What rows are told apart by; may be repeated.")] = None,
    since: Annotated[str, typer.Option(metavar="DURATION", help="How far back: 1h, 7d.")] = "7d",
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None,
    of_key: Annotated[str | None, typer.Option("--of-key", help="Of the key with this name alone.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what was asked of models, and what it cost."""
    from modelyard.config import parse_duration

    try:
        wanted: dict[str, Any] = {"since": max(0.0, time.time() - parse_duration(since))}
    except ValueError as error:
        raise typer.BadParameter(f"--since: {error}") from None
    wanted |= {name: value for name, value in (("model", model), ("key", of_key)) if value is not None}
    columns = [one.value for one in dict.fromkeys(by or [By.MODEL])]
    with connect(url, key) as client:
        rows = client.usage(*columns, **wanted)
    if as_json:
        print_json(rows)
    else:
        from modelyard.cli import tables

        _print(tables.console(), columns, rows)


def _print(where: Console, columns: list[str], rows: list[dict[str, Any]]) -> None:
    from datetime import datetime

    from rich.markup import escape

    from modelyard.cli import tables

    def cell(column: str, row: dict[str, Any]) -> str:
        if column == "hour":
            return datetime.fromtimestamp(row["hour"]).astimezone().strftime("%Y-%m-%d %H:%M")
        return escape(row[column]) or "-"

    table = tables.new(
        *columns, "requests", "failed", "tokens in", "tokens out", "slot time", "loads", "cost"
    )
    for row in rows:
        table.add_row(
            *(cell(column, row) for column in columns),
            f"{row['requests']:,}",
            f"{row['failed']:,}",
            f"{row['input_tokens']:,}",
            f"{row['output_tokens']:,}",
            f"{row['seconds']:,.1f} s",
            f"{row['loads']:,}",
            f"{row['cost']:,.4f}",
        )
    tables.show(where, table)
