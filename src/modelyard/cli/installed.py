"""`modelyard engines`: which engines there are, how each is tested, and what it lacks on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from modelyard.cli.control import AsJson, print_json


@dataclass(frozen=True, slots=True)
class Row:
    """An engine, or a preset of one (`command preset sglang`)."""

    engine: str
    verified: Literal["real", "golden"]
    missing: str


def engines(as_json: AsJson = False) -> None:
    """List the engines that are installed here, without a server: `verified: real` is tested as the real
    thing, `golden` only by its command lines; and what each lacks to be run on this machine."""
    rows = _rows()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    from rich.markup import escape

    from modelyard.cli import tables

    table = tables.new("engine", "verified", prose=("here",))
    for row in rows:
        table.add_row(row.engine, row.verified, escape(row.missing) or "can be run")
    tables.show(tables.console(), table)


def _rows() -> list[Row]:
    from modelyard.compose.entries import found
    from modelyard.engines import registry
    from modelyard.engines.base import Profile

    adapters = registry.load()
    where = found(*adapters.values())
    rows = []
    for name, engine in sorted(adapters.items()):
        rows.append(Row(name, engine.verified, engine.missing(Profile(name, name, found=where))))
        for preset in sorted(engine.presets):
            profile = Profile(name, name, defaults={"preset": preset}, found=where)
            rows.append(Row(f"{name} preset {preset}", "golden", engine.missing(profile)))
    return rows
