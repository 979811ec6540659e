"""What is told of the cache, as tables for people. Pure: takes its JSON, prints to a console."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from modelyard.cli.tables import Json, duration, new, show, size

_DIGITS = 12


def print_listing(console: Console, found: Json) -> None:
    if not found["files"]:
        console.print("no files")
    _print_files(console, found["files"])
    quota = f" of {size(found['quota'])}" if found["quota"] else ""
    aside = f" · {size(found['quarantined'])} set aside" if found["quarantined"] else ""
    console.print(f"{size(found['bytes'])}{quota} in the cache{aside}")


def print_pruned(console: Console, found: Json) -> None:
    _print_files(console, found["removed"])
    would = "would become free" if found["dry_run"] else "became free"
    console.print(f"{size(found['bytes'])} {would}")
    for file in found["in_use"]:
        console.print(f"{escape(_name(file))} is in use and stays", soft_wrap=True)


def print_verified(console: Console, found: Json) -> None:
    for file in found["files"]:
        said = (
            f"[red]{escape(file['problem'])}[/]" if file["problem"] else f"{escape(_name(file))}: as it was"
        )
        console.print(said, soft_wrap=True)
    count = len(found["files"])
    console.print(f"{count} file{'s' * (count != 1)}, {found['bad']} not what they were")


def _print_files(console: Console, files: list[Json]) -> None:
    table = new("source", "size", "sha256", "last used", "models", "state")
    for file in files:
        where = "in use" if file["in_use"] else "" if file["in_cache"] else "where it lies"
        if left := file["unfinished"]:
            whole = size(left["total"]) if left["total"] else "?"
            where = f"{'coming' if file['in_use'] else 'unfinished'}: {size(left['done'])} of {whole}"
        table.add_row(
            escape("\n".join(file["sources"]) or file["path"]),
            size(file["bytes"]),
            file["digest"][:_DIGITS],
            f"{duration(max(0.0, time.time() - file['used']))} ago",
            escape(", ".join(file["models"]) or "-"),
            where or "-",
        )
    show(console, table)


def _name(file: Json) -> str:
    return str(file["sources"][0] if file["sources"] else file["path"])
