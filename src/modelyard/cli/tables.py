"""What the control surface answers, as tables for people. Pure: takes its JSON, prints to a console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import IO, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modelyard.core.units import short

Json = Mapping[str, Any]

STYLES = {"loaded": "green", "ready": "green", "failed": "red", "loading": "yellow", "fetching": "yellow"}
BAR = 24
WIDTH_FOR_BARS = 120
PROSE_LEAST = 20
WIDEST = 10_000  # columns, where no terminal bounds them


def console(file: IO[str] | None = None) -> Console:
    """Where tables go: as wide as the terminal, or as they are where there is none (a pipe, a file)."""
    found = Console(file=file)
    return found if found.is_terminal else Console(file=file, width=WIDEST)


def size(count: int | None) -> str:
    return "-" if count is None else short(count)


def duration(seconds: float | None) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `3 min`, `2.5 h`."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def timing(times: Json | None) -> str:
    """How long something usually takes, and how much that varies: `4.2 ±0.3 s`."""
    return "-" if times is None else f"{times['median']:.3g} ±{times['spread']:.2g} s"


def bar(device: Json) -> str:
    """A device's memory as a bar: reserved, foreign, free."""
    total = max(1, device["total"])
    reserved = min(BAR, round(BAR * device["reserved"] / total))
    foreign = min(BAR - reserved, round(BAR * device["foreign"] / total))
    rest = BAR - reserved - foreign
    return f"[cyan]{'█' * reserved}[/][bright_black]{'▓' * foreign}{'░' * rest}[/]"


def print_status(console: Console, status: Json) -> None:
    """Everything of `ps`: devices, models, instances, and a last line that sums up."""
    print_devices(console, status["devices"])
    show(console, _models(status["models"]))
    show(console, _instances(status["instances"]))
    for fetch in status["fetches"]:
        of = f" of {size(fetch['total'])}" if fetch["total"] else ""
        console.print(f"fetching {escape(fetch['model'])}: {size(fetch['done'])}{of}")
    if problem := status["config"]["problem"]:
        lines = problem.splitlines()
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        console.print(
            f"[red]the last reload failed[/], and what was served before still is: {escape(lines[0])}{more}",
            soft_wrap=True,
        )
    state = "ready" if status["ready"] else f"not ready: {escape(status['reason'])}"
    console.print(
        f"{state} · {status['running']} running, {status['waiting']} waiting · "
        f"up {duration(status['uptime'])} · modelyard {status['version']}"
    )


def print_devices(console: Console, devices: Iterable[Json]) -> None:
    """The account of each device, and who holds it."""
    with_bars = console.width >= WIDTH_FOR_BARS
    bars = ("memory",) if with_bars else ()
    table = new("device", *bars, "total", "budget", "reserved", "observed", "foreign", "free", "held by")
    for device in devices:
        numbers = [
            size(device[name]) for name in ("total", "budget", "reserved", "observed", "foreign", "free")
        ]
        holders = [
            f"{escape(use['instance'])} {size(use['observed'] or use['reserved'])}"
            for use in device["instances"]
        ]
        gpu = device["kind"] in ("cuda", "rocm")
        name = escape(f"{device['name']} {device['id'][:12]}" if gpu else device["id"])
        drawn = (bar(device),) if with_bars else ()
        holders += [f"[red]{escape(device['closed'])}[/]"] if device["closed"] else []
        table.add_row(name, *drawn, *numbers, "\n".join(holders) or "-")
    show(console, table)


def print_story(console: Console, told: Json) -> None:
    """The sentences of `explain`, each with its time; a request's also with the seconds since its arrival."""
    of_request = told["about"] == "request"
    title = f"request {told['id']} for {told['model'] or 'no model'}" if of_request else told["model"]
    console.print(escape(title), style="bold")
    table = Table.grid(padding=(0, 1))
    first = next((line["at"] for line in told["story"] if line["kind"] == "arrived"), None)
    for line in told["story"]:
        moment = datetime.fromtimestamp(line["at"]).astimezone()
        when = moment.strftime("%H:%M:%S.%f" if of_request else "%Y-%m-%d %H:%M:%S.%f")[:-3]
        since = f"{line['at'] - first:+.3f} s" if of_request and first is not None else ""
        table.add_row(when, since, escape(line["text"]))
    console.print(table)
    if of_request and not told["ended"]:
        console.print("It has not ended, as far as the journal goes.")
    if told["requests"]:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(told["requests"].items()))
        console.print(f"requests in the journal: {escape(counts)}")


def _models(models: Iterable[Json]) -> Table:
    columns = ("model", "state", "engine", "needs", "loads in", "first token", "waiting", "instances")
    table = new(*columns, prose=("note",))
    for model in models:
        details, queue = model["details"], model["queue"]
        waiting = sum(queue["waiting"].values())
        waits = f"{waiting} (oldest {duration(queue['oldest'])})" if waiting else "-"
        note = model["error"] or (f"waits for {queue['blocked_by']}" if queue["blocked_by"] else "")
        names = " ".join([model["id"], *(f"({alias})" for alias in details["aliases"])])
        table.add_row(
            escape(names),
            _state(details["state"]),
            details["engine"],
            size(model["need"]),
            timing(model["load_time"]),
            timing(model["first_token_time"]),
            waits,
            str(len(model["instance_ids"])),
            escape(note.splitlines()[0] if note else ""),
        )
    return table


def _instances(instances: Iterable[Json]) -> Table:
    table = new("instance", "state", "leases", "memory", "idle", prose=("started because",))
    for instance in instances:
        memory = [
            f"{escape(held['device'])} {size(held['observed'] or held['reserved'])}"
            for held in instance["memory"]
        ]
        sleep = instance["sleep"]
        back = [
            f"{escape(device)} {size(given)}" for device, given in (sleep or {}).get("gave_back", {}).items()
        ]
        table.add_row(
            escape(instance["id"]),
            _state(instance["state"]) + (f" ({escape(sleep['rung'])})" if sleep else ""),
            f"{len(instance['leases'])}/{instance['slots']}",
            ", ".join(memory) + (f"; gave back {', '.join(back)}" if back else ""),
            duration(instance["idle_for"]),
            escape(instance["reason"]),
        )
    return table


def _state(state: str) -> str:
    style = STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def new(*columns: str, prose: Iterable[str] = ()) -> Table:
    """A table of names and sizes, with columns of `prose` behind them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=True)
    for column in prose:
        table.add_column(column, overflow="fold", min_width=PROSE_LEAST)
    return table


def show(console: Console, table: Table) -> None:
    """Print a table, unless it has no row. Only prose wraps: names and sizes stay in one piece, also where
    the table is then wider than the terminal."""
    if not table.row_count:
        return
    for column in table.columns:
        if column.no_wrap:
            cells = (Text.from_markup(str(cell)) for cell in (column.header, *column.cells))
            column.min_width = max(
                cell_len(line) for cell in cells for line in cell.plain.splitlines() or [""]
            )
    frame = 3 * len(table.columns) + 1  # blanks beside each cell, and the lines between
    least = sum(column.min_width or 0 for column in table.columns) + frame
    if least > console.width:
        table.width = least  # else the last columns would vanish
    console.print(table, crop=False)
